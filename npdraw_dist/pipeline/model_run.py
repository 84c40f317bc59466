"""What is known of the training of a model: its run folder, if it lies in one, and its splits."""

import contextlib
from typing import Any

from pyarrow import fs

from npdraw_dist.config.load import read_yaml
from npdraw_dist.config.schema import DataConfig
from npdraw_dist.config.spec import Spec, SplitSpec
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.storage import display_path, open_filesystem, read_bytes
from npdraw_dist.data import identity
from npdraw_dist.pipeline.openings import record_opening

INPUTS = "inputs.parquet"  # in a run: the files of its data (`pipeline.inputs`)


def find_run(model: str) -> tuple[str, dict[str, Any]] | None:
    """The run folder that holds a model folder, and its config; None if the model is in no run.

    The path of the data is the one of the last start, if they were moved after the first.
    """
    filesystem, path = open_filesystem(model)
    folder = path.rpartition("/")[0]
    config, inputs = f"{folder}/config.yaml", f"{folder}/{INPUTS}"
    if filesystem.get_file_info(config).type != fs.FileType.File:
        return None
    values = read_yaml(read_bytes(filesystem, config).decode(), display_path(filesystem, config))
    if filesystem.get_file_info(inputs).type == fs.FileType.File:
        values["data"] |= {"path": identity.load_metadata(filesystem, inputs).get("setting")}
    return model.rstrip("/").rpartition("/")[0] or ".", values


def record_opening_of(model: str, by: str) -> None:
    """Notes in the run of a model, if it is in one, that its test split was opened by a command."""
    run = find_run(model)
    if run is not None:
        with contextlib.suppress(OSError):  # a run that may only be read
            record_opening(*open_filesystem(run[0]), by)


def data_of(model: str, spec: Spec) -> DataConfig | None:
    """The data settings of a model's training: those of its run, else what its own config states (no path).

    None if neither is known. Nothing is downloaded with them.
    """
    run = find_run(model)
    if run is not None:
        data = DataConfig.model_validate(run[1]["data"])
    elif spec.data is not None:
        data = spec.data.data(spec.image_shape)
    else:
        return None
    return data.model_copy(update={"download": False})


def compare_data(known: SplitSpec | None, digest: str) -> str:
    """`same`, `other` or `unknown`: whether data of this digest are those that a model was trained on."""
    if known is None or known.inputs is None:
        return "unknown"
    return "same" if digest == known.inputs else "other"


def require_split(model: str, spec: Spec, data: DataConfig, seed: int | None) -> int:
    """The seed of the splits of `data`, so that no image of the model's training is scored as held out.

    seed: as the user gave it, for a model that does not know its own. Raises UserError if there is none, or
    if seed or fractions contradict those of the model.
    """
    known = spec.data
    if known is None:
        if seed is None:
            raise UserError(
                f"--model {model} does not state the seed of its splits, so images of its training could be "
                "scored as held out; give the seed of its run as --split-seed"
            )
        return seed
    if seed not in (None, known.seed):
        raise UserError(
            f"--split-seed is {seed}, but the splits of --model {model} have the seed {known.seed}"
        )
    if data.source == known.source:
        for name in ("valid_fraction", "test_fraction"):
            own, stated = getattr(known, name), getattr(data, name)
            if stated != own:
                raise UserError(f"--data.{name} is {stated:g}, but --model {model} was trained with {own:g}")
    return known.seed
