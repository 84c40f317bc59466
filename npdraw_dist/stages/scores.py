"""The test numbers of a model: bounds and their parts in nats per image, no training weight in them."""

from typing import Any

import torch
from torch import Tensor

from npdraw_dist.core.meters import Meters
from npdraw_dist.core.parts import Batch
from npdraw_dist.dist.feed import noise_seed
from npdraw_dist.measure.bounds import bits_per_dim, elbo, iwae
from npdraw_dist.nn.npdraw import NPDraw
from npdraw_dist.nn.objective import observe
from npdraw_dist.nn.steps import kl_parts

BATCH = 32


@torch.no_grad()
def score(model: NPDraw, data: Batch, k: int, seed: int) -> dict[str, Any]:
    """Means over `data`: nll_iwae (positive nats, k samples), elbo and its parts, bits_per_dim.

    The ELBO and its parts use the same k samples: KL terms are analytic given the steps before.
    """
    meters = Meters()
    generator = torch.Generator()
    for start in range(0, len(data), BATCH):
        generator.manual_seed(noise_seed(seed, 2**32 - 2, start))
        x = observe(data.images[start : start + BATCH], model.spec.binarize, generator)
        log_weights = model.log_weights(x, k, generator)
        meters.add({"nll_iwae": -iwae(log_weights), "elbo": elbo(log_weights), **_parts(model, x, generator)})
    means = meters.means()
    return {
        **means,
        "k": k,
        "n": len(data),
        "bits_per_dim": float(bits_per_dim(torch.tensor(means["nll_iwae"]), x[0].numel())),
    }


def _parts(model: NPDraw, x: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """reconstruction and KL parts (B,), one draw of z ~ q."""
    q = model.posterior(x)
    z = model.sample_posterior(q, generator)
    return {"reconstruction": model.log_likelihood(z, x), **kl_parts(q, model.prior(z))}
