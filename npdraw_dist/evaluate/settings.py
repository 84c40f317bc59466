"""The flags of `npdraw evaluate`, which set what is measured, on which data, and how."""

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt

from npdraw_dist.config.cli import Command
from npdraw_dist.config.help import flag_of, marked
from npdraw_dist.config.schema import DataConfig, ScaleConfig, Seed
from npdraw_dist.config.section import Count
from npdraw_dist.system.process import require_extra

RESULT = "evaluation.json"  # the file in a run folder that holds the result of `npdraw evaluate`


class Measurement(BaseModel):
    """The flags that set how likelihood and distances are measured."""

    model_config = ConfigDict(allow_inf_nan=False)

    k: PositiveInt = Field(50, description="importance samples of the likelihood")
    samples: PositiveInt | None = Field(
        None, description="samples for the distances; if not given, as many as real images"
    )
    fid_weights: str | None = Field(None, description="file of Inception weights, for the FID")
    extractor: str | None = Field(
        None, description="TorchScript file or module:attribute whose features measure a distance"
    )
    seed: Seed = Field(0, description="seed of noise and samples; if not given, the run's")
    scale: ScaleConfig = ScaleConfig()


def require_metrics(flags: Mapping[str, Any]) -> None:
    """Raises UserError if the flags name an extractor, but the package's extra `metrics` is not installed."""
    for name in ("fid_weights", "extractor"):
        if name in flags:
            require_extra(f"--{flag_of([name])}", "metrics", "torchmetrics", "torch_fidelity")


class EvaluationSettings(Measurement):
    model: str = Field(
        description="a run such as runs/digits, a model folder, a URI, an id of the hub or a model of the "
        "package; left out with --compare"
    )
    split: Literal["train", "valid", "test"] = Field("test", description="the split to measure on")
    images: PositiveInt | None = Field(
        None, description="number of images to measure, chosen by the hash of their id; if not given, all"
    )
    pixels: Literal["auto", "drawn", "mean"] = Field(
        "auto",
        description="pixels of samples, drawn from p(x|z) or its mean; auto: drawn if the data are binary",
    )
    temperature: PositiveFloat = Field(
        1.0, description="temperature of the prior for the samples of the distances"
    )
    edits: Count = Field(
        0, description="number of random edits to measure; each puts a region of one image on another"
    )
    split_seed: Seed | None = Field(
        None, description="seed of the splits, needed if the model does not state its own"
    )
    data: DataConfig = DataConfig()

    def for_likelihood(self, likelihood: str) -> "EvaluationSettings":
        """Replaces pixels `auto` by `drawn` for a Bernoulli likelihood, and by `mean` for the others."""
        if self.pixels != "auto":
            return self
        pixels = "drawn" if likelihood == "bernoulli" else "mean"
        return self.model_copy(update={"pixels": pixels})


class Questions(BaseModel):
    """The flags that `npdraw evaluate` takes only with --check-conditions."""

    attributes: str | None = Field(
        None,
        description="with --check-conditions, for a model conditioned on words: YAML file that maps each "
        "attribute to a list of its alternatives, each of one or more words",
    )
    questions: PositiveInt = Field(
        200, description="with --check-conditions: number of seen and of held-out conditions to request"
    )
    n: PositiveInt = Field(4, description="with --check-conditions: number of drawings of each condition")
    guidance: NonNegativeFloat | None = Field(
        None, description="with --check-conditions: strength of the condition, as for `npdraw sample`"
    )


class ConditionTest(Questions):
    """All flags of `npdraw evaluate --check-conditions`. out: a folder."""

    model_config = ConfigDict(allow_inf_nan=False, extra="forbid")

    model: str | None = None
    temperature: PositiveFloat | None = None
    seed: Seed = 0
    out: str


class Mode(BaseModel):
    """The flags that select what `npdraw evaluate` does, and where it writes the result."""

    compare: list[str] = Field(
        [], description="run folders, each with an evaluation.json, to put into one table"
    )
    check_conditions: bool = Field(
        False, description="measure how often a model draws the requested condition"
    )
    out: str | None = Field(
        None,
        description="result file; if not given, evaluation.json in the run folder; with --compare or "
        "--check-conditions a folder",
    )


class Evaluate(Command, EvaluationSettings, Questions, Mode):  # type: ignore[misc]  # pydantic-settings narrows model_config
    """Measures NLL, ELBO, bits/dim and, with an extractor, Frechet and kernel distance of a model.

    Data settings that are not given are taken from the model's run. --compare RUN ... writes a table and
    samples of evaluated runs to the folder --out (`npdraw report` compares the models of a sweep).
    --check-conditions measures how often a model draws the requested condition, and writes conditions.json
    and conditions.png to the folder --out. The conditions are those of training images (*seen*) and those
    that only validation images have (*held out*). Classifiers that are trained on the run's images judge the
    drawings.
    """

    main_flags: ClassVar[tuple[str, ...]] = (
        *("model", "split", "k", "images", "samples", "extractor", "fid-weights", "seed", "edits"),
        *("compare", "check-conditions", "attributes", "out"),
        *("data.source", "data.path", "scale.num_workers", "scale.use_gpu"),
    )
    examples: ClassVar[tuple[str, ...]] = (
        "--model runs/digits --k 100",
        "--model runs/digits --extractor digits.pt --samples 1000 --out digits.json",
        "--compare runs/first runs/second --out comparison",
        "--model runs/emoji --check-conditions --attributes docs/emoji-attributes.yaml --out checked",
    )

    @classmethod
    def without_flags(cls, words: Sequence[str]) -> tuple[str, Mapping[str, Any]]:
        return "", {"data": marked(DataConfig, "the run's"), "seed": "the run's"}


def spread(argv: Sequence[str], flag: str) -> list[str]:
    """Turns `--flag A B` into `--flag A --flag B`, which pydantic-settings can parse."""
    words: list[str] = []
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        values = list(takewhile(lambda w: not w.startswith("--"), rest)) if word == flag else []
        words += [w for value in values for w in (flag, value)] if values else [word]
        rest = rest[len(values) :]
    return words
