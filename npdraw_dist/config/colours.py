"""Colours as settings."""

from PIL import ImageColor


def require_colour(text: str) -> str:
    """`text`, a colour name or #rrggbb. Raises ValueError on anything else."""
    try:
        opaque = len(ImageColor.getrgb(text)) == 3
    except (ValueError, AttributeError):
        opaque = False
    if not opaque:
        raise ValueError(f"{text!r} is no opaque colour, such as white or #ffcc00")
    return text
