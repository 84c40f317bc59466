"""Every model trains, samples and scores on the device `meta`, which shows a GPU's mistakes without a GPU.

A tensor that is made on the CPU meets one of the model and is refused, and a value that the host would wait
for does not exist. Nothing is computed: what counts is which operations meet, not how often, so the priors
have one block.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from npdraw_dist.baselines.base import Baseline
from npdraw_dist.config.load import merge, preset_names, resolve
from npdraw_dist.config.registry import LIKELIHOODS
from npdraw_dist.config.schema import Experiment
from npdraw_dist.config.spec import spec_of
from npdraw_dist.core.objective import Objective
from npdraw_dist.core.parts import Batch, PartBank
from npdraw_dist.nn.animation import ANIMATED
from npdraw_dist.nn.generative import GPU_CHUNK
from npdraw_dist.nn.hub import make_model
from npdraw_dist.nn.npdraw import NPDraw
from npdraw_dist.pipeline.scores import BATCH, K_CHUNK
from npdraw_dist.pipeline.stage_job import moves
from tests.helpers.tiny_baselines import KINDS

META = torch.device("meta")
N = 3
NOISE: Any = None  # torch's own generator: meta has none

SMALL: dict[str, Any] = {
    "bank": {"size": 7},
    "grid": {"patch": 12, "stride": 9},
    "prior": {"depth": 1, "width": 16, "attention_heads": 2, "dropout": 0.1},
    "vae": {"encoder_width": 8, "decoder_width": 8},
}


def on_meta(settings: Experiment) -> NPDraw | Baseline:
    """Made on the CPU and moved, as training does."""
    model = make_model(spec_of(settings))
    assert isinstance(model, NPDraw | Baseline)
    return model.to(META)


def images(settings: Experiment, dtype: torch.dtype) -> Tensor:
    return torch.empty(N, *settings.data.shape, dtype=dtype, device=META)


def batch(settings: Experiment) -> Batch:
    steps = settings.steps if settings.has_parts else 0
    index = torch.empty(N, steps, dtype=torch.int16, device=META)
    return Batch(images(settings, torch.uint8), index.bool(), index, index)


def objectives(model: NPDraw | Baseline, settings: Experiment) -> Iterator[tuple[Objective, float]]:
    """Each stage's objective, with relaxed and with hard draws."""
    if isinstance(model, Baseline):
        yield model.objective(settings.vae), 0.5
        return
    yield model.prior_objective(model.prior, 1e-3), 0.5
    yield model.objective(settings.vae), 0.0
    yield model.objective(settings.vae), 1.0


def train(trained: Objective, progress: float, data: Batch) -> None:
    """A step of the optimizer, with the loop's own calls, and a validation."""
    groups = [{**group} for group in trained.parameter_groups() if group["params"]]
    optimizer = torch.optim.AdamW(groups)
    loss, metrics = trained(data, progress, NOISE)
    (loss.sum() / N).backward()
    norm = torch.nn.utils.clip_grad_norm_(trained.parameters(), 5.0)
    torch.where(torch.isfinite(norm), 1, 0)
    optimizer.step()
    with torch.no_grad():
        evaluated = trained.evaluate(data, NOISE)
    found = (loss, *metrics.values(), *evaluated.values())
    assert {(value.device, value.shape) for value in found} == {(META, (N,))}


def score(model: NPDraw | Baseline, settings: Experiment) -> None:
    x = images(settings, torch.float32)
    found = model.importance(x, 2)
    assert (found.log_w.device, found.log_w.shape, found.analytic.shape) == (META, (2, N), (2, N))
    if isinstance(model, Baseline):
        assert all(value.shape == (N,) for value in model.describe(x).values())
        return
    z = model.encode(x)
    assert model.prior.log_prob(z).shape == (N,)
    assert model.decode(model.render(z)).shape == x.shape
    model.infer_appearance(x, model.render(z))


def sample(model: NPDraw | Baseline, settings: Experiment) -> None:
    shape = (N, *settings.data.shape)
    assert model.sample(N, temperature=0.9, pixels=True).shape == shape
    trace = model.sample_trace(N)
    assert trace.decoded.shape == (min(N, ANIMATED), trace.drawn.shape[1], *settings.data.shape)
    assert {code.device for code in trace.codes.values()} == {META}
    if isinstance(model, NPDraw):
        assert model.sample_prior(N, top_k=3, distinct_places=True).whether.device == META


def everything(settings: Experiment) -> None:
    model = on_meta(settings)
    for trained, progress in objectives(model, settings):
        train(trained, progress, batch(settings))
    score(model.eval(), settings)
    sample(model, settings)


@pytest.mark.slow
@pytest.mark.parametrize("name", preset_names())
def test_a_preset_trains_scores_and_samples(name: str) -> None:
    everything(resolve(name, None, {"prior": {"depth": 1}}))


COLOUR: dict[str, Any] = {"data": {"source": "cifar10", "binarize": "none"}}
WHITE: dict[str, Any] = {"background": "white"}
NETWORKS: list[dict[str, Any]] = [
    {"parse": {"order": "aligned"}, "prior": {"heads": "independent"}, "grid": WHITE},
    {"parse": {"order": "path", "steps": 9}, "prior": {"table": "pixels"}, "vae": {"latents": 3}},
    {
        "parse": {"order": "raster", "steps": 9},
        "grid": WHITE,
        "vae": {"latents": "map:3", "latent_ramp": 0.5},
    },
    {"model": {"kind": "authors"}, "prior": {"heads": "independent"}, "grid": WHITE},
    {"parse": {"order": "ranked", "steps": 4}, "grid": {"stride": 12}, "vae": {"draws": 1}},
    {**COLOUR, "vae": {"likelihood": "logistic"}, "grid": {"downscale": 2}},
]


@pytest.mark.few(4)
@pytest.mark.parametrize("network", NETWORKS, ids=str)
def test_a_network_trains_scores_and_samples(network: dict[str, Any]) -> None:
    everything(Experiment.model_validate(merge(SMALL, network)))


@pytest.mark.few(2)
@pytest.mark.parametrize(
    ("kind", "likelihood"),
    [("vae", "bernoulli"), ("vae", "logistic"), *((kind, "logistic_mixture") for kind in KINDS)],
)
def test_a_baseline_trains_scores_and_samples(kind: str, likelihood: str) -> None:
    data = {} if LIKELIHOODS[likelihood].binary else COLOUR
    settings = {"vae": {"likelihood": likelihood}, "model": {"kind": kind}, **data}
    everything(Experiment.model_validate(merge(SMALL, settings)))


@pytest.mark.few(1)
@pytest.mark.parametrize("name", [n for n in preset_names() if resolve(n, None, {}).train.augmented])
def test_moved_images_are_parsed_on_the_device(name: str) -> None:
    settings = resolve(name, None, {})
    model = on_meta(settings)
    assert isinstance(model, NPDraw)
    change = moves(settings, PartBank(model.bank_parts), "vae")
    assert change is not None
    moved = change(batch(settings), 0.0, NOISE)
    assert moved.images.device == moved.z.what.device == META
    assert moved.z.what.shape == (N, settings.steps)


class PeakMemory(TorchDispatchMode):
    """`peak`: the largest number of bytes that tensors made in its block had at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._living: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if func.is_view:
            return found
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if torch.is_tensor(t)}
        for made in tree_leaves(found):
            if torch.is_tensor(made) and (storage := made.untyped_storage())._cdata not in given:
                self._living[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self._living = {key: kept for key, kept in self._living.items() if not kept[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self._living.values()))
        return found


def peak_gb(preset: str, kind: str, k: int, flags: Mapping[str, Any] | None = None) -> float:
    """Peak memory of importance sampling for a batch."""
    settings = resolve(preset, None, {**(flags or {}), "model": {"kind": kind}})
    with META:
        model = make_model(spec_of(settings)).eval()
    with PeakMemory() as memory:
        model.importance(torch.empty(BATCH, *settings.data.shape, device=META), k, None)
    return memory.peak / 1e9


@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("preset", "kind"),
    [("mnist", "npdraw"), *(("cifar10", kind) for kind in ("npdraw", *KINDS)), ("authors", "authors")],
)
def test_scoring_fits_a_quarter_of_a_small_gpu(preset: str, kind: str) -> None:
    """A T4's memory, less context and weights."""
    assert 0.001 < peak_gb(preset, kind, K_CHUNK) < 3.0


@pytest.mark.slow
def test_memory_does_not_grow_with_the_side_of_an_image() -> None:
    sides = {"data": {"image_size": 256}, "grid": {"patch": 16, "stride": 16, "downscale": 2}}
    assert 0.5 < peak_gb("emoji", "npdraw", GPU_CHUNK // BATCH, sides) < 1.5  # 512 rows at once: 21 GB


def test_memory_does_not_grow_with_k() -> None:
    few, many = (peak_gb("mnist", "npdraw", k) for k in (GPU_CHUNK // BATCH, 8 * GPU_CHUNK // BATCH))
    assert many < 1.02 * few
