"""npdraw train: runs all stages of a training (data, bank, parse, prior, vae and sample)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, Field

from npdraw_dist.config.cli import PRESET, PresetCommand, own_flags, parse_flags, run_command
from npdraw_dist.config.load import dump, names_in, resolve
from npdraw_dist.config.schema import STAGES, Experiment


class Options(BaseModel):
    """The flags of `npdraw train` that are not settings of the experiment."""

    preset: str = Field(PRESET, description="a preset: digits, mnist, ...")
    config: Path | None = Field(None, description="a YAML file of settings, as --dry-run prints them")
    name: str | None = Field(None, description="name of the run; if not given, the preset's name")
    storage: str = Field("runs", description="folder or URI that holds the run folders")
    stages: str | None = Field(None, description="stages to run, separated by commas; if not given, all")
    track: Literal["wandb", "mlflow"] | None = Field(
        None,
        description="also send losses, settings and final numbers to Weights & Biases or MLflow, which their "
        "own environment variables configure",
    )
    dry_run: bool = Field(False, description="print the resolved config and stop")


class Train(PresetCommand, Options, Experiment):  # type: ignore[misc]  # pydantic-settings narrows model_config
    """Reads the images, builds the part bank, parses the images, trains prior and VAE, and draws samples.

    A baseline (any --model.kind but npdraw and authors) has the stages data, vae and sample. The same command
    again resumes the run. --config overrides the settings of the preset, and flags override both.
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
        "--preset mnist_cluster --data.source parquet --data.path s3://bucket/mnist --storage s3://bucket/runs",
        "--data.source imagefolder --data.path PHOTOS --data.image_size 64 --data.channels 3 --dry-run",
    )


def chosen_stages(text: str, known: Sequence[str] = STAGES) -> list[str]:
    """The stages named in `text`, in the order of `known`. Raises UserError on an unknown name."""
    names = names_in("--stages", "stage", text, known)
    return [stage for stage in known if stage in names]


def main(argv: Sequence[str]) -> None:
    flags: dict[str, Any] = parse_flags(Train, "npdraw_dist.train", argv)
    own = own_flags(Options, flags)
    experiment = resolve(own.preset, own.config, flags)
    known = experiment.stage_names
    stages = list(known) if own.stages is None else chosen_stages(own.stages, known)
    if own.dry_run:
        print(dump(experiment), end="")
        return

    # Torch and Ray take seconds to import, so the flags are checked first.
    from npdraw_dist.pipeline.run import start

    name = own.preset if own.name is None else own.name
    start(experiment, own.storage, name, stages, track=own.track)


if __name__ == "__main__":
    run_command(main)
