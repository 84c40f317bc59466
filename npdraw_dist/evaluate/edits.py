"""Measures how well a model replaces a region of image A by the same region of image B.

The model decodes A with its latents of the region taken from B (`GenerativeModel.swapped`). The error is the
difference from B inside the region, and from A outside. Two references are measured too. The reconstructions
of A and B show the least error to expect. The pasted image, which is A with the region's pixels taken from B,
is reconstructed as a whole. Shapes: N images, E edits, C channels, H x W image.
"""

import torch
from torch import Tensor

from npdraw_dist.measure.features import Extract
from npdraw_dist.nn.generative import GenerativeModel
from npdraw_dist.system.errors import UserError
from npdraw_dist.training.feed import noise_seed

EDITS = 500  # number of edits that a comparison measures
EDITING = 2**32 - 9  # keeps the seed of edits apart from other seeds
AT_ONCE = 64
FEATURES, BETWEEN = ("edit_features", "pasted_features"), "between"
LEAST, MOST = 0.25, 0.75  # least and greatest side of a region, as a share of the image's side


@torch.no_grad()
def measure_edits(
    model: GenerativeModel, images: Tensor, count: int, seed: int, extract: Extract | None = None
) -> dict[str, float]:
    """Returns the mean errors of `count` random edits by name. images: uint8 (N, C, H, W).

    edit_inside, edit_outside: mean squared error to B in the region, and to A elsewhere. The prefix
    reconstructed_ marks the same errors of the reconstructions of B and A; the prefix pasted_ marks those of
    the reconstruction of the pasted image. With an extractor, edit_features and pasted_features: squared
    distance from the features of the pasted image, divided by the squared distance between the features of A
    and B. Raises UserError if the model cannot edit a region, or if there are fewer than two images.
    """
    if len(images) < 2:
        raise UserError(f"an edit takes two images, and there are {len(images)}")
    generator = torch.Generator().manual_seed(noise_seed(seed, EDITING))
    x, sums = model.as_input(images), dict[str, Tensor]()
    first = torch.randint(len(x), (count,), generator=generator)
    second = (first + torch.randint(1, len(x), (count,), generator=generator)) % len(x)
    regions = random_regions(count, x.shape[2], x.shape[3], generator)
    for a, b, inside in zip(
        x[first].split(AT_ONCE), x[second].split(AT_ONCE), regions.to(x.device).split(AT_ONCE), strict=True
    ):
        pasted = torch.where(inside[:, None], b, a)
        edited, kept = model.swapped(a, b, inside), model.swapped(pasted, pasted, inside)
        whole = [model.swapped(image, image, inside) for image in (a, b)]
        terms = {
            **_errors("edit", edited, pasted, inside),
            **_errors("pasted", kept, pasted, inside),
            **_errors("reconstructed", torch.where(inside[:, None], whole[1], whole[0]), pasted, inside),
        }
        if extract is not None:
            of = [extract(image.float()) for image in (edited, kept, pasted, a, b)]
            terms |= {
                name: (found - of[2]).square().sum(1) for name, found in zip(FEATURES, of[:2], strict=True)
            }
            terms[BETWEEN] = (of[3] - of[4]).square().sum(1)
        for name, values in terms.items():
            sums[name] = sums.get(name, torch.zeros(())) + values.double().sum().cpu()
    means = {name: float(total) / count for name, total in sums.items()}
    between = means.pop(BETWEEN, 1.0)
    return {name: value / between if name in FEATURES else value for name, value in means.items()}


def random_regions(count: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """Masks (count, H, W) bool of random rectangles, with sides from LEAST to MOST of the image's sides."""
    inside = torch.ones(count, height, width, dtype=torch.bool)
    for axis, size in ((1, height), (2, width)):
        share = LEAST + (MOST - LEAST) * torch.rand(count, generator=generator)
        sides = (size * share).round().clamp(min=1)
        starts = (torch.rand(count, generator=generator) * (size - sides + 1)).floor()
        pixels = torch.arange(size)
        within = (pixels >= starts[:, None]) & (pixels < (starts + sides)[:, None])
        inside &= within.unsqueeze(3 - axis)
    return inside


def _errors(name: str, made: Tensor, wanted: Tensor, inside: Tensor) -> dict[str, Tensor]:
    """The mean squared error of each edit, (E,), in the region and elsewhere."""
    error = (made - wanted).square().mean(1)
    return {
        f"{name}_{where}": (error * mask).sum((1, 2)) / mask.sum((1, 2))
        for where, mask in (("inside", inside), ("outside", ~inside))
    }
