"""The trainings of a comparison: the config of each, and the budget of images that takes the counted time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from npdraw_dist.config.load import build, merge, read_preset, with_changes
from npdraw_dist.config.registry import kind_of
from npdraw_dist.config.schema import Experiment
from npdraw_dist.core.errors import UserError
from npdraw_dist.distributed.failures import reason_of
from npdraw_dist.pipeline.probe import cost
from tune_spaces.space import Kinds, Point, Value, nested, refuse_settings, require_scratch, setting_of

RATE_IMAGES = 640  # of the training that tells the fixed cost
VALIDATIONS = 20  # in a training, however long. They are not counted
LEAST_BATCHES = 20  # in any training, whatever an image costs
PLAIN = 4  # the last 1/PLAIN of a budget trains on images that are not moved
VALID_SHARE = 0.2  # of the images of the fraction, held out for the choice
JOB_FOLDERS = ("rates", "trials", "seeds", "longer")  # that hold the trainings of a comparison
ALONE = {"num_workers": 0, "use_gpu": False}  # seconds of a core are counted
# Settings that a comparison decides itself.
DECIDED = ("model.kind", "vae.images", "data.valid_fraction", "init.model", "init.bank")


@dataclass(frozen=True)
class Job:
    """A training of the comparison: a run `name` in the sweep's folder `folder`.

    experiment: its config. budget: images of its stage `vae`; None as long as its cost is not measured.
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
        """A short training, which tells what the same costs for any budget."""
        return self.with_images(RATE_IMAGES, "rates", f"{self.name}-start")

    def with_images(self, images: int, folder: str, name: str, seed: int | None = None) -> "Job":
        """The training of this config for `images`, as a run of its own."""
        changes: dict[str, Any] = {} if seed is None else {"seed": seed}
        experiment = with_changes(with_budget(self.experiment, images), changes)
        return Job(folder, name, self.kind, self.point, self.settings, experiment, images)


@dataclass(frozen=True)
class Rate:
    """What a config costs in counted seconds of a core.

    fixed_s: of data, bank, parses and the fit of the posterior's temperatures, whatever the budget is. ms:
    milliseconds more for each image.
    """

    fixed_s: float
    ms: float

    @classmethod
    def of(cls, ms: float, images: int, core_seconds: float) -> "Rate":
        """From the cost of an image, and that of a training on `images`."""
        return cls(max(core_seconds - images * ms / 1000, 0.0), ms)

    def images(self, core_seconds: float, experiment: Experiment) -> int:
        """The budget that takes so many counted seconds, in whole batches."""
        batch = experiment.train.batch_size
        images = int((core_seconds - self.fixed_s) * 1000 / self.ms)
        return max(images // batch, LEAST_BATCHES) * batch


def ms_an_image(job: Job) -> float | str:
    """Milliseconds of a core that an image of the budget costs in training; a reason if it fails.

    The prior sees its own number of images meanwhile.
    """
    experiment = job.experiment
    try:
        found = cost(experiment, cores=True)
    except Exception as error:
        return reason_of(error)
    share = experiment.prior.images / experiment.vae.images
    return 1000 * (found.vae(experiment.vae.relaxed_share) + share * found.prior)


def with_budget(experiment: Experiment, images: int) -> Experiment:
    """The config with `images` as its budget. All that counts images keeps its share of it."""
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
    """`data.fraction` and `data.valid_fraction` with which `fraction` of the images are used in all.

    VALID_SHARE of these are held out: at 1% the validation images are a part of that 1%. Data with validation
    images of their own ignore `data.valid_fraction`: there all of these choose, and `data.fraction` is exact.
    """
    held = fraction * VALID_SHARE
    return {"valid_fraction": held, "fraction": fraction * (1 - VALID_SHARE) / (1 - held)}


def base_config(
    space: Kinds, preset: str | None, file: Mapping[str, Any], flags: Mapping[str, Any]
) -> Experiment:
    """The config that all kinds share. Raises UserError if a flag sets what the comparison decides."""
    if flags.get("eval", {}).get("split") == "test":
        raise UserError("--eval.split test: a sweep never opens the test split; npdraw report opens it once")
    refuse_settings(flags, DECIDED, "is decided by the comparison")
    fixed = {"eval": {"split": "valid"}}
    base = build(merge(read_preset(preset or space.preset), nested(space.settings), file, flags, fixed))
    require_scratch(base)
    return base


def draw_trials(
    space: Kinds, base: Experiment, kinds: Sequence[str], count: int, own_valid: bool = False
) -> list[Job]:
    """`count` random trials of each kind, all with the same share of the images and the same seed.

    The same ones for the same seed. own_valid: the data have validation images of their own. Raises UserError
    if a config is impossible.
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
