"""From a spec to its model, of whatever kind."""

from npdraw_dist.config.spec import BaselineSpec, ModelSpec
from npdraw_dist.nn.baselines.air import AIR
from npdraw_dist.nn.baselines.base import Baseline
from npdraw_dist.nn.baselines.draw import DRAW
from npdraw_dist.nn.baselines.vae import ConvVAE
from npdraw_dist.nn.npdraw import NPDraw

BASELINES: dict[str, type[Baseline]] = {"vae": ConvVAE, "draw": DRAW, "air": AIR}
KINDS: dict[str, type[Baseline] | type[NPDraw]] = {"npdraw": NPDraw, **BASELINES}


def make_baseline(spec: BaselineSpec) -> Baseline:
    return BASELINES[spec.kind](spec)


def make_model(spec: ModelSpec | BaselineSpec) -> Baseline | NPDraw:
    """An untrained model."""
    return NPDraw(spec) if isinstance(spec, ModelSpec) else make_baseline(spec)
