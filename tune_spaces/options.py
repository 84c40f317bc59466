"""Defines the flags of the command `sweep` that are not settings of the config, and loads a search space."""

import pkgutil
from pathlib import Path
from runpy import run_module, run_path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt

from npdraw_dist.config.help import flag_of
from npdraw_dist.config.load import nearest, read_file
from npdraw_dist.system.errors import UserError
from tune_spaces import spaces
from tune_spaces.space import Kinds, Space

OF_KINDS = ("kinds", "seeds", "core_seconds", "longest")  # flags that only a space of Kinds takes
NOT_OF_KINDS = ("search", "scheduler", "metric")  # flags that a space of Kinds does not take


def space_names() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(spaces.__path__))


class Options(BaseModel):
    """The flags of the command `sweep` that are not settings of the config."""

    model_config = ConfigDict(allow_inf_nan=False)

    space: str = Field(description=f"a search space: {', '.join(space_names())}, or a .py file")
    preset: str | None = Field(None, description="a preset; default: the space's")
    config: str | None = Field(None, description="a YAML file of settings that override the preset")
    num_samples: PositiveInt | None = Field(None, description="number of trials; default: the space's")
    name: str | None = Field(None, description="name of the sweep; default: its space and preset")
    storage: str = Field("runs", description="folder or URI that holds the run folders")
    metric: str | None = Field(None, description="valid_nll or valid_prior_nll; default: the space's")
    search: Literal["random", "optuna"] = Field("random", description="method that proposes the trials")
    scheduler: Literal["asha", "none"] = Field(
        "asha", description="asha stops poor trials early; none stops no trial"
    )
    max_concurrent_trials: PositiveInt | None = Field(
        None, description="trials at once; default: as many as the CPUs or GPUs allow"
    )
    kinds: str | None = Field(
        None,
        description="space comparison: kinds, separated by commas; default: all that have ranges there",
    )
    seeds: PositiveInt | None = Field(
        None,
        description="space comparison: number of new seeds of each kind's best trial; default: the space's",
    )
    core_seconds: PositiveFloat | None = Field(
        None,
        description="space comparison: core-seconds of each training; default: the space's",
    )
    longest: int = Field(
        4, ge=2, description="space comparison: longest training of a best trial, as a multiple of its time"
    )
    retry_failed: bool = Field(False, description="run failed trials again")
    dry_run: bool = Field(False, description="print the trials and stop")

    def refuse(self, names: tuple[str, ...], why: str) -> None:
        """Raises UserError, whose message ends with `why`, if one of the flags `names` was given."""
        for name in names:
            if name in self.model_fields_set:
                raise UserError(f"--{flag_of([name])} {why}")

    def file(self) -> dict[str, Any]:
        """The settings in the file that --config names. Raises UserError if the file is unreadable."""
        return {} if self.config is None else read_file(Path(self.config))


def load_space(name: str) -> Space | Kinds:
    """The SPACE in tune_spaces/spaces/<name>.py, or in the Python file `name`.

    Raises UserError if there is no such space, or if one of its settings is impossible in every config.
    """
    names = space_names()
    try:
        if name in names:
            found = run_module(f"{spaces.__name__}.{name}")
        elif name.endswith(".py"):
            found = run_path(name)
        else:
            known = f"known: {', '.join(names)}; or a .py file"
            raise UserError(f"unknown space{nearest(name, names)} ({known})")
    except UserError as error:
        raise UserError(f"--space {name}: {error}") from None
    except Exception as error:
        raise UserError(f"--space {name} cannot be read: {type(error).__name__}: {error}") from None
    space = found.get("SPACE")
    if not isinstance(space, Space | Kinds):
        raise UserError(f"--space {name} defines no SPACE = Space(...)")
    return space
