"""Every model trains, samples and scores on the device `meta`: without a GPU, a GPU's mistakes are seen.

A tensor that is made on the CPU meets one of the model and is refused, and a value that the host would wait
for does not exist. Nothing is computed: what counts is which operations meet, not how often, so the priors
have one block.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from npdraw_dist.config.load import preset_names, resolve
from npdraw_dist.config.registry import LIKELIHOODS
from npdraw_dist.config.schema import Experiment
from npdraw_dist.config.spec import BaselineSpec, ModelSpec
from npdraw_dist.core.objective import Objective
from npdraw_dist.core.orders import ORDERS
from npdraw_dist.core.parts import Batch, PartBank, PartSequence
from npdraw_dist.nn.authors.training import AuthorsObjective
from npdraw_dist.nn.baselines.base import Baseline, BaselineObjective
from npdraw_dist.nn.generative import ANIMATED, GenerativeModel
from npdraw_dist.nn.hub import make_model
from npdraw_dist.nn.npdraw import NPDraw
from npdraw_dist.nn.objective import PriorObjective, VAEObjective
from npdraw_dist.pipeline.stage_job import moves
from npdraw_dist.pipeline.train_stage import with_settings_of
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
COLOUR: dict[str, Any] = {"source": "cifar10", "binarize": "none"}
FREE = [name for name, order in ORDERS.items() if not order.aligned]


def experiment(*layers: dict[str, Any]) -> Experiment:
    return Experiment.model_validate(_merged(SMALL, *layers))


def _merged(*layers: dict[str, Any]) -> dict[str, Any]:
    sections = {name for layer in layers for name in layer}
    return {name: {k: v for layer in layers for k, v in layer.get(name, {}).items()} for name in sections}


def on_meta(settings: Experiment) -> NPDraw | Baseline:
    """Made on the CPU and moved, as training does."""
    of = BaselineSpec if settings.model.kind != "npdraw" else ModelSpec
    model = make_model(of.of(settings))
    assert isinstance(model, NPDraw | Baseline)
    return model.to(META)


def images(settings: Experiment, dtype: torch.dtype) -> Tensor:
    return torch.empty(N, *settings.data.shape, dtype=dtype, device=META)


def batch(settings: Experiment) -> Batch:
    steps = settings.steps if settings.model.kind == "npdraw" else 0
    index = torch.empty(N, steps, dtype=torch.int16, device=META)
    return Batch(images(settings, torch.uint8), index.bool(), index, index)


def objectives(model: NPDraw | Baseline, settings: Experiment) -> Iterator[tuple[Objective, float]]:
    """Each stage's objective, with relaxed and with hard draws."""
    if isinstance(model, Baseline):
        yield BaselineObjective(model, settings.vae), 0.5
        return
    yield PriorObjective(model.prior, 1e-3), 0.5
    kind = AuthorsObjective if settings.authors.model else VAEObjective
    yield kind(model, settings.vae), 0.0
    yield kind(model, settings.vae), 1.0


def train(trained: Objective, progress: float, data: Batch) -> None:
    """A step of the optimizer, with the loop's own calls, and a validation."""
    groups = [{**group} for group in trained.parameter_groups() if group["params"]]
    optimizer = torch.optim.AdamW(groups)
    loss, metrics = trained(data, progress, NOISE)
    assert {value.device for value in (loss, *metrics.values())} == {META}
    assert {value.shape for value in (loss, *metrics.values())} == {(N,)}
    (loss.sum() / N).backward()
    norm = torch.nn.utils.clip_grad_norm_(trained.parameters(), 5.0)
    torch.where(torch.isfinite(norm), 1, 0)
    optimizer.step()
    with torch.no_grad():
        metrics = trained.evaluate(data, NOISE)
    assert {(value.device, value.shape) for value in metrics.values()} == {(META, (N,))}


def score(model: GenerativeModel, settings: Experiment) -> None:
    x = images(settings, torch.float32)
    found = model.importance(x, 2)
    assert (found.log_w.device, found.log_w.shape, found.analytic.shape) == (META, (2, N), (2, N))
    if isinstance(model, NPDraw):
        z = model.encode(x)
        assert model.prior_log_prob(z).shape == (N,)
        assert model.decode(model.render(z)).shape == x.shape
        model.infer_appearance(x, model.render(z))
    elif isinstance(model, Baseline):
        assert all(value.shape == (N,) for value in model.describe(x).values())


def sample(model: GenerativeModel, settings: Experiment) -> None:
    shape = (N, *settings.data.shape)
    assert model.sample_pixels(N, temperature=0.9).shape == shape
    trace = model.sample_trace(N)
    assert trace.decoded.shape == (min(N, ANIMATED), trace.drawn.shape[1], *settings.data.shape)
    assert {code.device for code in trace.codes.values()} == {META}
    if isinstance(model, NPDraw):
        z: PartSequence = model.sample_prior(N, top_k=3, distinct_places=True)
        assert z.whether.device == META
    else:
        assert model.sample(N).shape == shape


def everything(settings: Experiment) -> None:
    model = on_meta(settings)
    for trained, progress in objectives(model, settings):
        train(trained, progress, batch(settings))
    score(model.eval(), settings)
    sample(model, settings)


def with_slow(name: str, slow: bool) -> Any:
    return pytest.param(name, marks=pytest.mark.slow if slow else ())


# celeba_cluster has the networks of celeba.
@pytest.mark.few(2)
@pytest.mark.parametrize("name", [with_slow(name, name == "celeba_cluster") for name in preset_names()])
def test_a_preset_trains_scores_and_samples(name: str) -> None:
    everything(resolve(name, None, {"prior": {"depth": 1}}))


@pytest.mark.few(3)
@pytest.mark.parametrize("name", ["mnist", with_slow("celeba", True)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_baseline_of_a_preset_trains_scores_and_samples(kind: str, name: str) -> None:
    everything(resolve(name, None, {"model": {"kind": kind}, "prior": {"depth": 1}}))


NETWORKS: list[dict[str, Any]] = [
    {"prior": {"heads": "independent"}},
    {"prior": {"table": "factorised"}},
    {"vae": {"latents": 3}},
    {"vae": {"latents": "map:3", "latent_ramp": 0.5, "draws": 1}},
    {"grid": {"patch": 10, "stride": 10}},
]
WHITE: dict[str, Any] = {"grid": {"background": "white"}}


@pytest.mark.few(3)
@pytest.mark.parametrize("network", NETWORKS, ids=str)
@pytest.mark.parametrize("order", [with_slow(order, order in ("raster", "ranked")) for order in ORDERS])
def test_an_order_trains_scores_and_samples(order: str, network: dict[str, Any]) -> None:
    steps = {} if ORDERS[order].aligned else {"steps": 9}
    everything(experiment({"parse": {"order": order, **steps}}, network))


@pytest.mark.few(2)
@pytest.mark.parametrize("order", list(ORDERS))
def test_an_order_of_the_default_network_trains_scores_and_samples(order: str) -> None:
    everything(experiment({"parse": {"order": order}}))


@pytest.mark.few(1)
@pytest.mark.parametrize("order", ["aligned", "path"])
def test_white_trains_scores_and_samples(order: str) -> None:
    everything(experiment({"parse": {"order": order}}, WHITE))


@pytest.mark.few(1)
@pytest.mark.parametrize("ground", [{}, WHITE], ids=str)
def test_the_authors_model_trains_scores_and_samples(ground: dict[str, Any]) -> None:
    everything(experiment({"authors": {"model": True}, "prior": {"heads": "independent"}}, ground))


@pytest.mark.few(4)
@pytest.mark.parametrize(
    ("kind", "downscale"), [("npdraw", 1), ("npdraw", 2), *((kind, 1) for kind in KINDS)]
)
@pytest.mark.parametrize("likelihood", list(LIKELIHOODS))
def test_a_likelihood_trains_scores_and_samples(likelihood: str, kind: str, downscale: int) -> None:
    data = {} if LIKELIHOODS[likelihood].binary else COLOUR
    everything(
        experiment(
            {"data": data, "vae": {"likelihood": likelihood}, "model": {"kind": kind}},
            {"grid": {"downscale": downscale}},
        )
    )


@pytest.mark.few(1)
@pytest.mark.parametrize("name", [n for n in preset_names() if resolve(n, None, {}).train.augmented])
def test_moved_images_are_parsed_on_the_device(name: str) -> None:
    settings = with_settings_of("vae", resolve(name, None, {}))
    model = on_meta(settings)
    assert isinstance(model, NPDraw)
    change = moves(settings, PartBank(model.bank_parts), "vae")
    assert change is not None
    moved = change(batch(settings), 0.0, NOISE)
    assert moved.images.device == moved.z.what.device == META
    assert moved.z.what.shape == (N, settings.steps)
