"""The negative ELBO over discrete (hard) draws of z, and its gradient. Shapes: B batch, k draws per image."""

from torch import Tensor

from npdraw_dist.core.noise import Noise
from npdraw_dist.nn.networks import Networks
from npdraw_dist.nn.relaxations import total_kl
from npdraw_dist.nn.steps import StepLogits

Loss = tuple[Tensor, dict[str, Tensor]]  # the loss of each image, (B,), and metrics (B,) by name


def hard_loss(
    model: Networks,
    x: Tensor,
    q: StepLogits,
    k: int,
    generator: Noise,
    condition: Tensor | None = None,
    beta: float = 1.0,
    latent: float = 1.0,
) -> Loss:
    """-log p(x|z, u) + beta KL(q || p), the mean over k draws z ~ q(z|x), u ~ q(u|x, z) of each image x.

    The gradient for the choices in z is the unbiased score-function estimator, whose baseline for each draw
    is the mean reward of the image's other draws (leave-one-out; Kool et al. 2019). A single draw trains the
    prior, the decoder and q(u|x, z), but not q(z|x). x: (B, C, H, W). q: logits of q(z|x). condition: A
    tokens for each image, (B, A). latent: multiplies the KL of u in the loss, in addition to beta.
    """
    q = q.tile(k) if k > 1 else q.map(Tensor.detach)
    z = model.sample_posterior(q.map(Tensor.detach), generator)
    found = model.reconstruct_from(model.render(z), x.repeat(k, 1, 1, 1), generator)
    each = None if condition is None else condition.repeat(k, 1)
    terms = model.layout.terms(q, model.prior(z, each).float32(), z)
    parts = {**terms.kl, **found.kl}
    kl = total_kl(parts)
    eased = kl if latent == 1 or not found.kl else kl - (1 - latent) * total_kl(found.kl)
    weighted = beta * eased
    if k > 1:
        fit = found.log_p - beta * latent * sum(found.kl.values())
        reward = fit.detach()[:, None] - beta * terms.dependent.detach()
        score = (leave_one_out(reward, k) * terms.log_q).sum(1)
        loss = -(found.log_p - weighted + score)
    else:
        loss = weighted - found.log_p
    metrics = {"reconstruction": found.log_p, **parts, "elbo": found.log_p - kl}
    return loss.view(k, -1).mean(0), {name: value.view(k, -1).mean(0) for name, value in metrics.items()}


def leave_one_out(rewards: Tensor, k: int) -> Tensor:
    """rewards (k * B, ...), ordered by draw -> each reward minus the mean of its image's other k - 1."""
    each = rewards.view(k, -1, *rewards.shape[1:])
    return ((each - each.mean(0)) * (k / (k - 1))).view_as(rewards)
