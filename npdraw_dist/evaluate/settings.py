"""The flags of `npdraw evaluate` and `npdraw asked`: what is measured, on which data, and how."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt

from npdraw_dist.config.cli import Command, Model, dashed
from npdraw_dist.config.help import marked
from npdraw_dist.config.schema import DataConfig, ScaleConfig, Seed
from npdraw_dist.config.section import Count

PLAN = "comparison.json"  # in the folder of a sweep of the space comparison
RESULT = "evaluation.json"  # in the run folder of a model


class EvaluationSettings(BaseModel):
    model_config = ConfigDict(allow_inf_nan=False)

    model: str = Field(
        description="a run, such as runs/digits, a model folder, a URI, an id of the hub or a model of the "
        "package; none with --compare"
    )
    split: Literal["train", "valid", "test"] = Field("test", description="the split to measure on")
    k: PositiveInt = Field(
        50, description="importance samples of the likelihood; if not given, with --compare SWEEP 100"
    )
    images: PositiveInt | None = Field(
        None, description="at most so many images of the split, by the hash of their id; if not given, all"
    )
    samples: PositiveInt | None = Field(
        None,
        description="samples for the distance; if not given, as many as real images, with --compare SWEEP "
        "10,000",
    )
    fid_weights: str | None = dashed(None, "fid-weights", "file of Inception weights, for the FID")
    extractor: str | None = Field(
        None, description="TorchScript file or module:attribute whose features measure a distance"
    )
    pixels: Literal["auto", "drawn", "mean"] = Field(
        "auto", description="pixels of samples: drawn from p(x|z) or its mean; auto draws if data is binary"
    )
    temperature: PositiveFloat = Field(1.0, description="temperature of the prior, for the distance")
    edits: Count = Field(
        0, description="random edits that are measured: a region of one image of the split on another"
    )
    served: Count = Field(
        0, description="for --compare SWEEP: test images that served for choices (those of --images)"
    )
    seed: Seed = Field(
        0, description="seed of noise and samples; if not given, the run's, with --compare SWEEP 0"
    )
    split_seed: Seed | None = dashed(
        None, "split-seed", "seed of the splits, for a model that does not state its own"
    )
    data: DataConfig = DataConfig()
    scale: ScaleConfig = ScaleConfig()

    @property
    def extractor_flags(self) -> tuple[str | None, str | None]:
        """The first arguments of `find_extractor`."""
        return self.fid_weights, self.extractor


class Evaluate(Command, EvaluationSettings):  # type: ignore[misc]  # pydantic-settings narrows model_config
    """Measures NLL, ELBO, bits/dim and, with an extractor, Frechet and kernel distance of a model.

    Data settings that are not given are those of the model's run. --compare SWEEP ... of sweeps of the space
    `comparison` opens their test split once and writes a report to the folder --out; --compare RUN ... of
    evaluated runs writes a table and samples.
    """

    main_flags: ClassVar[tuple[str, ...]] = (
        *("model", "split", "k", "images", "samples", "extractor", "fid-weights", "seed", "edits"),
        *("compare", "served", "out", "data.source", "data.path", "scale.num_workers", "scale.use_gpu"),
    )
    examples: ClassVar[tuple[str, ...]] = (
        "--model runs/digits --k 100",
        "--model runs/digits --extractor digits.pt --samples 1000 --out digits.json",
        "--compare runs/first runs/second --out comparison",
        "--compare runs/comparison-mnist_cpu-100 --extractor classifier.pt --out report",
    )

    @classmethod
    def without_flags(cls, words: Sequence[str]) -> tuple[str, Mapping[str, Any]]:
        return "", {"data": marked(DataConfig, "the run's"), "seed": "the run's"}

    compare: list[str] = Field(
        [],
        description="sweeps of the space comparison, or run folders, each with its evaluation.json",
    )
    out: str | None = Field(None, description="result file; if not given, evaluation.json in the run folder")


class Asked(Command):
    """Asks a model for classes or words, and has classifiers of real images read its drawings.

    The model is in its run, whose training and validation images the classifiers take. Questions are
    conditions of these images: *seen* ones come in training, *held out* ones in validation alone, with words
    that training has. Writes OUT/asked.json and a sheet, OUT/asked.png.
    """

    examples: ClassVar[tuple[str, ...]] = (
        "--model runs/digits-by-class --n 100 --guidance 1.5 --out asked",
        "--model runs/emoji --attributes docs/emoji-attributes.yaml --out asked",
    )

    model: Model = None
    attributes: str | None = Field(
        None,
        description="YAML file, attribute -> list of its alternatives, each one or more words; for a model "
        "that is told words",
    )
    questions: PositiveInt = Field(
        200, description="conditions that are asked, seen and held out: so many of each, or all there are"
    )
    n: PositiveInt = Field(4, description="drawings of each question")
    guidance: NonNegativeFloat = Field(1.5, description="as for `npdraw sample`")
    temperature: PositiveFloat | None = Field(
        None, description="temperature of the prior; if not given, the model's own"
    )
    seed: Seed = Field(0, description="seed of questions, drawings and classifiers")
    out: str = Field(description="the folder to write to")
