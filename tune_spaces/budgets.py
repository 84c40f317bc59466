"""Makes the configs of a comparison's trainings, and finds how many images train in the counted time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from npdraw_dist.config.load import build, merge, read_preset, with_changes
from npdraw_dist.config.registry import kind_of
from npdraw_dist.config.schema import Experiment
from npdraw_dist.distributed.failures import reason_of
from npdraw_dist.pipeline.probe import cost
from npdraw_dist.system.errors import UserError
from tune_spaces.space import Kinds, Point, Value, nested, refuse_settings, require_scratch, setting_of

RATE_IMAGES = 640  # number of images in the short training that measures the fixed cost
VALIDATIONS = 20  # validations in each training, whatever its length; their time is not counted
LEAST_BATCHES = 20  # least number of batches in a training, even if an image is expensive
PLAIN = 4  # the last 1/PLAIN of the images in a training are not augmented
VALID_SHARE = 0.2  # share of the images that is held out for validation
JOB_FOLDERS = ("rates", "trials", "seeds", "longer")  # the folders of a comparison's trainings
ALONE = {"num_workers": 0, "use_gpu": False}  # one process, since the cost is counted in seconds of one core
# Settings that a comparison sets itself; flags for them are refused.
DECIDED = ("model.kind", "vae.images", "data.valid_fraction", "init.model", "init.bank")


@dataclass(frozen=True)
class Job:
    """A training run of the comparison, called `name`, in the sweep's folder `folder`.

    settings: the settings that vary. budget: vae.images; None before the cost of an image is measured.
    """

    folder: str
    name: str
    kind: str
    point: Point
    settings: dict[str, Value]
    experiment: Experiment
    budget: int | None = None

    @property
    def path(self) -> str:
        return f"{self.folder}/{self.name}"

    def start(self) -> "Job":
        """The job of a short training, from which the fixed cost of the config is measured."""
        return self.with_images(RATE_IMAGES, "rates", f"{self.name}-start")

    def with_images(self, images: int, folder: str, name: str, seed: int | None = None) -> "Job":
        """The job of training this config on `images` images, in a run folder of its own."""
        changes: dict[str, Any] = {} if seed is None else {"seed": seed}
        experiment = with_changes(with_budget(self.experiment, images), changes)
        return Job(folder, name, self.kind, self.point, self.settings, experiment, images)


@dataclass(frozen=True)
class Rate:
    """The cost of a config in counted core-seconds.

    fixed_s: seconds that do not depend on the budget, for data, bank, parses and the fit of the posterior's
    temperatures. ms: milliseconds for each image of the budget.
    """

    fixed_s: float
    ms: float

    @classmethod
    def of(cls, ms: float, images: int, core_seconds: float) -> "Rate":
        """Derives the fixed cost from the `core_seconds` of a training on `images` images at `ms` each."""
        return cls(max(core_seconds - images * ms / 1000, 0.0), ms)

    def images(self, core_seconds: float, experiment: Experiment) -> int:
        """The number of images, in whole batches, whose training takes `core_seconds`."""
        batch = experiment.train.batch_size
        images = int((core_seconds - self.fixed_s) * 1000 / self.ms)
        return max(images // batch, LEAST_BATCHES) * batch


def ms_an_image(job: Job) -> float | str:
    """Core-milliseconds of training (prior included) per image of vae.images, or why measuring failed."""
    experiment = job.experiment
    try:
        found = cost(experiment, cores=True)
    except Exception as error:
        return reason_of(error)
    share = experiment.prior.images / experiment.vae.images
    return 1000 * (found.vae(experiment.vae.relaxed_share) + share * found.prior)


def with_budget(experiment: Experiment, images: int) -> Experiment:
    """The config with `images` as vae.images; other settings that count images are set to match."""
    batch, relaxed = experiment.train.batch_size, experiment.vae.relaxed_images
    scale = images / experiment.vae.images
    prior = max(round(experiment.prior.images * scale), batch)
    relaxed = None if relaxed is None else round(relaxed * scale)
    return with_changes(
        experiment,
        {
            "vae": {"images": images, "plain_images": images // PLAIN, "relaxed_images": relaxed},
            "prior": {"images": prior, "plain_images": prior // PLAIN},
            "train": {"eval_every_images": max(images // VALIDATIONS, batch)},
        },
    )


def split_shares(fraction: float) -> dict[str, float]:
    """Settings of section data that use `fraction` of the images, with VALID_SHARE of these for validation.

    Data with their own validation split ignore `valid_fraction`, so this `fraction` would be wrong for them.
    """
    valid = fraction * VALID_SHARE
    return {"valid_fraction": valid, "fraction": fraction * (1 - VALID_SHARE) / (1 - valid)}


def base_config(
    space: Kinds, preset: str | None, file: Mapping[str, Any], flags: Mapping[str, Any]
) -> Experiment:
    """The config that all kinds share. Raises UserError on a flag that the comparison sets itself."""
    if flags.get("eval", {}).get("split") == "test":
        raise UserError(
            "a sweep never opens the test split; leave out --eval.split test (npdraw report opens it once)"
        )
    refuse_settings(flags, DECIDED, "is decided by the comparison")
    fixed = {"eval": {"split": "valid"}}
    base = build(merge(read_preset(preset or space.preset), nested(space.settings), file, flags, fixed))
    require_scratch(base)
    return base


def draw_trials(
    space: Kinds, base: Experiment, kinds: Sequence[str], count: int, own_valid: bool = False
) -> list[Job]:
    """`count` random trials of each kind. They depend only on the seed, and all train on the same images.

    own_valid: the data have a validation split of their own. Raises UserError if a config is impossible.
    """
    data = {} if own_valid else split_shares(base.data.fraction)
    found = []
    for kind in kinds:
        ranges = space.of(kind)
        for number, point in enumerate(ranges.latin(base.seed, count)):
            changes = {"model": {"kind": kind_of(kind)}, "data": data, "scale": ALONE}
            experiment = with_changes(base, nested(ranges.settings(point)), changes)
            settings = {
                "model.kind": kind_of(kind),
                **{key: setting_of(experiment, key) for key in ranges.keys},
            }
            found.append(Job("trials", f"{kind}-{number}", kind, point, settings, experiment))
    return found
