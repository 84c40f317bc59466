"""What changes over the training with relaxed draws, as functions of the share of it that is done."""

from npdraw_dist.config.schema import VAEConfig
from npdraw_dist.core.schedules import exponential, gaussian, ramp


def gumbel_temperature(config: VAEConfig, done: float) -> float:
    """tau of the Gumbel-softmax draws of *what*."""
    fall = exponential if config.tau_decay == "exponential" else ramp
    return fall(done, config.tau_start, config.tau_end, config.tau_ramp)


def teacher_chance(config: VAEConfig, done: float) -> float:
    """The chance that a drawing is the parse, not a draw of q."""
    if config.teacher_decay == "gaussian":
        return gaussian(done, config.teacher_start, config.teacher_ramp)
    return ramp(done, config.teacher_start, 0.0, config.teacher_ramp)
