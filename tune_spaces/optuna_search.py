"""Optuna's TPE as the search of a sweep. Optuna is optional."""

from collections.abc import Sequence
from typing import Any

from npdraw_dist.core.process import require_extra
from tune_spaces.selection import SCORE
from tune_spaces.space import Choice, Space
from tune_spaces.trial_results import TrialResult


def require_optuna() -> None:
    require_extra("--search optuna", "optuna", "optuna")


def optuna_search(space: Space, seed: int, done: Sequence[TrialResult]) -> Any:
    """An `OptunaSearch` over the space that knows the scores of the trials that are done."""
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    domains: dict[str, Any] = {}
    for name, domain in space.fields.items():
        if isinstance(domain, Choice):
            domains[name] = optuna.distributions.CategoricalDistribution(list(range(len(domain.values))))
        else:
            domains[name] = optuna.distributions.FloatDistribution(domain.low, domain.high, log=domain.log)
    known = [(result.point, result.score) for result in done if result.score is not None and result.point]
    return OptunaSearch(
        domains,
        metric=SCORE,
        mode="min",
        points_to_evaluate=[dict(point) for point, _ in known] or None,
        evaluated_rewards=[score for _, score in known] or None,
        seed=seed + len(done),  # after a resume the same seed would propose the known points again
    )
