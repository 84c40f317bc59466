"""Schedules: pure functions of the images seen, so that a resumed run continues them exactly."""

import math


def ramp(images_seen: float, start: float, end: float, images: float) -> float:
    """Linear from `start` at 0 images to `end` at `images`, then constant; `end` at once if images is 0."""
    if images <= 0:
        return end
    progress = min(max(images_seen / images, 0.0), 1.0)
    return start + (end - start) * progress


def warmup_cosine(images_seen: float, images: float, warmup: float, floor: float = 0.0) -> float:
    """A learning-rate factor: linear from 0 over `warmup` images, then a cosine to `floor` at `images`."""
    if images_seen < warmup:
        return (images_seen + 1) / (warmup + 1)
    progress = min((images_seen - warmup) / max(images - warmup, 1.0), 1.0)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def warmup_linear(images_seen: float, images: float, warmup: float, fall: float) -> float:
    """A learning-rate factor: linear from 0 over `warmup` images, 1, linear to 0 over the last `fall`."""
    rise = (images_seen + 1) / (warmup + 1)
    left = max(images - images_seen, 0.0) / fall if fall > 0 else 1.0
    return min(rise, left, 1.0)
