"""npdraw train: the whole pipeline, bank, parse, prior, vae, sample."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import AliasChoices, Field

from npdraw_dist.config.cli import Command, of_preset, parse_flags, run_command
from npdraw_dist.config.load import dump, names_in, resolve
from npdraw_dist.config.schema import STAGES, Experiment
from npdraw_dist.training.environment import restart_with_environment


class Train(Command, Experiment):  # type: ignore[misc]  # pydantic-settings narrows model_config
    """Builds the part bank, parses the images, trains prior and VAE and draws samples.

    A baseline (any other --model.kind than npdraw) has the stages parse, vae and sample. The same command
    again resumes the run. Settings come from the preset, then --config, then flags.
    """

    first_flags: ClassVar[tuple[str, ...]] = (
        *("preset", "name", "data.source", "data.path", "bank.size", "prior.condition", "prior.images"),
        *("vae.images", "train.batch_size", "scale.num_workers"),
    )
    main_flags: ClassVar[tuple[str, ...]] = (
        *("config", "storage", "stages", "track", "dry-run", "seed", "data.image_size", "data.channels"),
        *("data.fraction", "data.cache_mb", "data.max_bad_fraction", "grid.patch", "grid.stride"),
        *("bank.max_patches", "bank.shards", "parse.steps", "parse.order", "prior.depth", "prior.width"),
        *("prior.attention_heads", "prior.heads", "vae.likelihood", "train.select"),
        *("train.eval_every_images", "scale.use_gpu", "model.kind", "eval.split"),
    )
    examples: ClassVar[tuple[str, ...]] = (
        "",
        "--preset mnist_cpu --data.path MNIST_FOLDER --name first",
        "--preset mnist_cluster --storage s3://bucket/runs --scale.num_workers 8",
        "--data.source imagefolder --data.path PHOTOS --data.image_size 64 --data.channels 3 --dry-run",
    )

    @classmethod
    def without_flags(cls, words: Sequence[str]) -> tuple[str, Mapping[str, Any]]:
        return of_preset(words, "digits")

    preset: str = Field("digits", description="a preset: digits, mnist, ...")
    config: str | None = Field(None, description="a YAML file of settings, as --dry-run prints it")
    name: str | None = Field(None, description="name of the run; if not given, the preset's name")
    storage: str = Field("runs", description="folder or URI that holds the run folders")
    stages: str | None = Field(None, description="stages to run, separated by commas; if not given, all")
    track: Literal["wandb", "mlflow"] | None = Field(
        None,
        description="also send losses, settings and final numbers to Weights & Biases or MLflow, as the "
        "environment variables of these say",
    )
    dry_run: bool = Field(
        False, validation_alias=AliasChoices("dry-run"), description="print the resolved config and stop"
    )


def chosen_stages(text: str, known: Sequence[str] = STAGES) -> list[str]:
    """The stages named in `text`, in the order of `known`. Raises UserError on an unknown name."""
    names = names_in("--stages", "stage", text, known)
    return [stage for stage in known if stage in names]


def main(argv: Sequence[str]) -> None:
    flags: dict[str, Any] = parse_flags(Train, "npdraw_dist.train", argv)
    names = ("preset", "config", "name", "storage", "stages", "dry-run", "track")
    preset, config, name, storage, named, dry_run, track = (flags.pop(flag, None) for flag in names)
    preset = "digits" if preset is None else preset
    experiment = resolve(preset, None if config is None else Path(config), flags)
    stages = list(experiment.stage_names) if named is None else chosen_stages(named, experiment.stage_names)
    if dry_run:
        print(dump(experiment), end="")
        return

    # Torch and Ray take seconds to import, so the flags are checked first.
    from npdraw_dist.pipeline.run import start

    storage = "runs" if storage is None else storage
    start(experiment, storage, preset if name is None else name, stages, track=track)


if __name__ == "__main__":
    restart_with_environment()
    run_command(main)
