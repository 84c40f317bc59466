"""From a spec to its model. `config.registry` lists the kinds of models."""

from npdraw_dist.config.registry import KINDS, load
from npdraw_dist.config.spec import BaselineSpec, ModelSpec
from npdraw_dist.nn.baselines.base import Baseline
from npdraw_dist.nn.npdraw import NPDraw


def model_class(kind: str) -> type[Baseline] | type[NPDraw]:
    """The class of a registered kind."""
    found: type[Baseline] | type[NPDraw] = load(KINDS[kind].code)
    return found


def make_model(spec: ModelSpec | BaselineSpec) -> Baseline | NPDraw:
    """An untrained model."""
    return NPDraw(spec) if isinstance(spec, ModelSpec) else make_baseline(spec)


def make_baseline(spec: BaselineSpec) -> Baseline:
    """An untrained baseline."""
    baseline: Baseline = load(KINDS[spec.kind].code)(spec)
    return baseline
