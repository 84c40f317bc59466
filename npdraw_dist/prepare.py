"""npdraw prepare: writes a data set once as Parquet or WebDataset shards."""

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field

from npdraw_dist.config.cli import Command, parse_flags, run_command, validate
from npdraw_dist.config.schema import DataConfig, ScaleConfig, Seed
from npdraw_dist.system.process import require_extra


class Prepare(Command):
    """Reads a data set once and writes shards with explicit splits and a manifest, as the stage data does.

    Read the shards with --data.source parquet (or webdataset) --data.path OUT. The same command resumes.
    """

    main_flags: ClassVar[tuple[str, ...]] = (
        *("out", "format", "seed", "data.source", "data.path", "data.image_size", "data.channels"),
        *("data.shard_rows", "data.valid_fraction", "data.test_fraction", "data.max_bad_fraction"),
        "scale.num_workers",
    )
    examples: ClassVar[tuple[str, ...]] = (
        "--data.source imagefolder --data.path PHOTOS --data.image_size 64 --data.channels 3 --out shards",
        "--data.source omniglot --data.path OMNIGLOT_FOLDER --out s3://bucket/omniglot --format webdataset",
    )

    data: DataConfig = DataConfig()
    scale: ScaleConfig = ScaleConfig()
    seed: Seed = Field(0, description="seed of the splits")
    out: str = Field(description="folder or URI to write to; the same command again resumes")
    format: Literal["parquet", "webdataset"] = Field("parquet", description="kind of the shards")


def main(argv: Sequence[str]) -> None:
    settings: Prepare = validate(Prepare, parse_flags(Prepare, "npdraw_dist.prepare", argv))

    if settings.format == "webdataset":
        require_extra("--format webdataset", "data", "webdataset")

    # Torch takes seconds to import, so the flags are checked first.
    from npdraw_dist.data.shards import open_source
    from npdraw_dist.distributed.start import placed, start_ray
    from npdraw_dist.pipeline.data import prepare, require_out
    from npdraw_dist.pipeline.progress import stage_progress

    source = open_source(settings.data, settings.seed)
    require_out(settings.data, source, settings.out, settings.format)
    scale = placed(settings.scale)
    if not scale.in_process:
        start_ray(scale)
    with stage_progress("prepare", source.count() or 0) as show:
        manifest = prepare(settings.data, settings.seed, settings.out, settings.format, source, show)
    splits = ", ".join(f"{name} {count:,}" for name, count in manifest["splits"].items())
    print(
        f"{settings.out}: {manifest['images']:,} images in {len(manifest['files'])} shards "
        f"({splits}; {manifest['rejected']} rejected)"
    )


if __name__ == "__main__":
    run_command(main)
