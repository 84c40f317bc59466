"""A bank of a trained model on new images: kept as it is, or with parts for what it fits badly.

Shapes: M patches, K parts, D = C * P * P pixels of a patch.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from npdraw_dist.bank.build import BankFacts, build_bank
from npdraw_dist.bank.patches import unique_rows
from npdraw_dist.config.schema import BankConfig
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.parts import PartBank

CHUNK = 16_384  # patches whose distances are in memory at once


def extend_bank(
    old: PartBank,
    patches: NDArray[np.uint8],
    settings: BankConfig,
    seed: int,
    gpu: bool | None = False,
) -> tuple[PartBank, BankFacts]:
    """The parts of `old` in their order, then others of `patches` (M, D), up to `settings.size`.

    The added parts are a bank (`build_bank`) of the patches whose squared distance to the nearest old part is
    above its mean: they have most of the error, and none of them is an old part. In the facts, `objective` is
    the mean squared distance to the nearest part, not to a centroid. Raises UserError if there is no patch,
    or too few different ones to add.
    """
    if len(patches) == 0:
        raise UserError("no patch of the training images reaches bank.min_energy; lower it")
    added = settings.size - len(old)
    nearest, distance = nearest_parts(old, patches)
    found, elsewhere, exemplar = old.parts, 0.0, 0.0
    if added:
        badly = patches[distance > distance.mean()]
        different = len(unique_rows(badly)) if len(badly) else 0
        if different < added:
            raise UserError(
                f"bank.size is {settings.size}, but the {len(old)} parts of init.model fit all but "
                f"{different} different patches of the new images well; lower it"
            )
        only = settings.model_copy(update={"size": added})
        new, facts = build_bank(badly, old.channels, only, seed, gpu)
        elsewhere, exemplar = facts.actor_core_seconds, facts.exemplar_distance
        found = torch.cat([old.parts, new.parts])
        nearest, distance = nearest_parts(PartBank(found), patches)
    return PartBank(found), BankFacts(
        k=len(found),
        patches=len(patches),
        objective=float(distance.mean()),
        cluster_sizes=np.bincount(nearest, minlength=len(found)).tolist(),
        exemplar_distance=exemplar,
        actor_core_seconds=elsewhere,
    )


def nearest_parts(
    bank: PartBank, patches: NDArray[np.uint8]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The nearest part of each of `patches` (M, D), (M,), and its squared distance, pixels in [0, 1]."""
    parts = bank.parts.flatten(1).double()
    squares = parts.square().sum(1)
    nearest: list[Tensor] = []
    distances: list[Tensor] = []
    for start in range(0, len(patches), CHUNK):
        x = torch.from_numpy(patches[start : start + CHUNK]).double() / 255
        best = (squares - 2 * x @ parts.T).argmin(1)
        nearest.append(best)
        # Without the cancellation of the line above: 0 where a patch is a part.
        distances.append((x.float() - bank.parts.flatten(1)[best]).double().square().sum(1))
    return torch.cat(nearest).numpy(), torch.cat(distances).numpy()
