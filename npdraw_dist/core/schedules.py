"""Schedules: pure functions of the images seen, so that a resumed run takes them up exactly."""

import math


def ramp(images_seen: float, start: float, end: float, images: float) -> float:
    """`start` at 0 images, `end` from `images` on, linear between; `end` at once where images is 0."""
    if images <= 0:
        return end
    share = min(max(images_seen / images, 0.0), 1.0)
    return start + (end - start) * share


def warmup_cosine(images_seen: float, images: float, warmup: float, floor: float = 0.0) -> float:
    """A learning-rate factor: up from 0 over `warmup` images, then down to `floor` at `images`."""
    if images_seen < warmup:
        return (images_seen + 1) / (warmup + 1)
    share = min((images_seen - warmup) / max(images - warmup, 1.0), 1.0)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * share))
