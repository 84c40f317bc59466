"""Bias and variance of the gradients that can train the posterior, on a trained model and real images.

    python -m tests.helpers.gradients --model runs/NAME/model --images FILE.npy --out FILE.json

The gradient is that of an image's bound in q's logits of *whether* and *what*. The reference is the mean of
many unbiased estimates. For each estimator: the cosine of its mean with the reference, its bias and the
standard deviation of one estimate, both as multiples of the reference's norm, and seconds an estimate.
Estimators that training does not offer were tried and left out: Gumbel-Rao (Paulus et al. 2021) and VIMCO
(Mnih and Rezende 2016). VIMCO has the gradient of the k-sample bound, which is another bound: its bias to the
ELBO's gradient is no mistake.
Shapes: B images, L places, K parts, k draws.
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from npdraw_dist import NPDraw
from npdraw_dist.config.schema import VAEConfig
from npdraw_dist.nn.objective import VAEObjective
from npdraw_dist.nn.relaxations import gumbel_noise, soft_canvas
from npdraw_dist.nn.steps import StepLogits, log_prob

Loss = Callable[[StepLogits, torch.Generator], Tensor]


def hard(objective: VAEObjective, x: Tensor) -> Loss:
    return lambda q, generator: objective._hard(x, q, generator)[0].sum()


def relaxed(objective: VAEObjective, x: Tensor, tau: float) -> Loss:
    other = VAEObjective(objective.model, objective.config.model_copy(update={"tau_end": tau}))
    parse = objective.model.encode(x)
    return lambda q, generator: other._relaxed(x, q, parse, 1.0, generator)[0].sum()


def vimco(objective: VAEObjective, x: Tensor, k: int) -> Loss:
    """The k-sample bound; each draw's baseline puts the geometric mean of the others in its place."""
    model = objective.model

    def loss(q: StepLogits, generator: torch.Generator) -> Tensor:
        tiled = q.tile(k)
        z = model.sample_posterior(tiled.map(Tensor.detach), generator)
        found = model.reconstruct_from(model.render(z), x.repeat(k, 1, 1, 1), generator)
        log_q = model.layout.log_prob(tiled, z)
        log_w = (found.log_p - found.log_ratio + log_prob(model.prior(z), z) - log_q).view(k, -1)
        bound = log_w.logsumexp(0) - math.log(k)
        fixed = log_w.detach()
        others = (fixed.sum(0) - fixed) / (k - 1)
        swapped = torch.stack([torch.cat([fixed[:i], others[i : i + 1], fixed[i + 1 :]]) for i in range(k)])
        signal = bound.detach() - (swapped.logsumexp(1) - math.log(k))
        return -(bound + (signal * log_q.view(k, -1)).sum(0)).sum()

    return loss


def gumbel_rao(objective: VAEObjective, x: Tensor, tau: float, samples: int) -> Loss:
    """Straight-through *what*, its noise averaged given the drawn part. Hard *whether*, no gradient."""
    model = objective.model

    def loss(q: StepLogits, generator: torch.Generator) -> Tensor:
        z = model.sample_posterior(q.map(Tensor.detach), generator)
        soft = torch.stack(
            [(conditional_gumbel(q.what, z.what, generator) / tau).softmax(-1) for _ in range(samples)]
        ).mean(0)
        one_hot = torch.nn.functional.one_hot(z.what, soft.shape[-1]).to(soft.dtype)
        what = one_hot + soft - soft.detach()
        canvas = soft_canvas(model.bank_parts, what, z.whether.to(soft.dtype), model.grid)
        log_p = model.reconstruct_from(canvas, x, generator).log_p
        kl = sum(model.layout.surrogate_kl(q, model.prior(z), z).values())
        return (kl - log_p).sum()

    return loss


def conditional_gumbel(logits: Tensor, index: Tensor, generator: torch.Generator) -> Tensor:
    """Logits (..., K) with Gumbel noise, given that `index` (...) is the largest."""
    log_odds = logits.log_softmax(-1)
    noise = -gumbel_noise(logits, generator)  # log of an exponential draw
    top = noise.gather(-1, index[..., None])
    return (-torch.logaddexp(noise - log_odds, top)).scatter(-1, index[..., None], -top)


def measure(loss: Loss, q: StepLogits, repeats: int, seed: int) -> tuple[dict[str, Tensor], float]:
    """`repeats` estimates by choice, (repeats, B * L * ...), and seconds an estimate."""
    found: dict[str, list[Tensor]] = {"whether": [], "what": []}
    generator = torch.Generator().manual_seed(seed)
    began = time.perf_counter()
    for _ in range(repeats):
        leaves = [q.whether.detach().requires_grad_(), q.what.detach().requires_grad_()]
        value = loss(StepLogits(leaves[0], None, leaves[1]), generator)
        for name, gradient in zip(found, torch.autograd.grad(value, leaves, allow_unused=True), strict=True):
            found[name].append((torch.zeros(()) if gradient is None else gradient).flatten())
    seconds = (time.perf_counter() - began) / repeats
    return {name: torch.stack(values) for name, values in found.items()}, seconds


def compared(estimates: Tensor, reference: Tensor) -> dict[str, float]:
    mean, norm = estimates.mean(0), reference.norm()
    if not mean.any():
        return {"cosine": 0.0, "bias": 1.0, "deviation": 0.0}
    variance = estimates.var(0)
    # The mean of a few estimates is off by chance: that much is taken from the bias.
    bias = ((mean - reference).square().sum() - variance.sum() / len(estimates)).clamp(min=0).sqrt()
    return {
        "cosine": float(torch.nn.functional.cosine_similarity(mean, reference, dim=0)),
        "bias": float(bias / norm),
        "deviation": float(variance.sum().sqrt() / norm),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="a model folder")
    parser.add_argument("--images", required=True, help="uint8 images (N, C, H, W), .npy")
    parser.add_argument("--number", type=int, default=32, help="images used")
    parser.add_argument("--repeats", type=int, default=200, help="estimates of each estimator")
    parser.add_argument("--out", required=True, help="JSON")
    args = parser.parse_args()
    model = NPDraw.from_pretrained(args.model).eval()
    images = torch.from_numpy(np.load(args.images)[: args.number])
    x = torch.bernoulli(images / 255, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        q = model.infer(x)

    def objective(draws: int) -> VAEObjective:
        return VAEObjective(model, VAEConfig(draws=draws))

    reference = measure(hard(objective(8), x), q, 2 * args.repeats, 1)[0]
    estimators = {
        **{f"leave-one-out, k {k}": hard(objective(k), x) for k in (2, 4, 8)},
        **{f"VIMCO, k {k}": vimco(objective(k), x, k) for k in (2, 4)},
        **{f"relaxed, tau {tau}": relaxed(objective(2), x, tau) for tau in (1.0, 0.5, 0.25)},
        "Gumbel-Rao of what, tau 0.5, 16": gumbel_rao(objective(2), x, 0.5, 16),
    }
    table = {}
    for name, loss in estimators.items():
        estimates, seconds = measure(loss, q, args.repeats, 2)
        rows = {choice: compared(estimates[choice], reference[choice].mean(0)) for choice in estimates}
        table[name] = {**rows, "seconds": seconds}
        print(name, json.dumps(table[name]), flush=True)
    Path(args.out).write_text(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
