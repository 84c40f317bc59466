"""A run that starts from a trained model or from a part bank."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from PIL import Image

import npdraw_dist
from npdraw_dist import NPDraw, PartBank, train
from npdraw_dist.config.load import resolve
from npdraw_dist.config.schema import Experiment
from npdraw_dist.fitting import fit
from npdraw_dist.nn.objective import VAEObjective
from npdraw_dist.pipeline import bank, data, parse, prior, vae
from npdraw_dist.pipeline.store import Store, fingerprint_of
from npdraw_dist.pipeline.train_stage import validation_images
from npdraw_dist.pipeline.trained_models import source_model
from npdraw_dist.system.errors import UserError
from tests.helpers.in_process import Stopped
from tests.helpers.tiny_baselines import TINY_PRIOR, tiny_baseline
from tests.helpers.tiny_fit import COLOUR, GREY, SMALL, corners, settings_of, strokes
from tests.helpers.tiny_models import tiny_model, tiny_spec
from tune_spaces import sweep


def test_grey_images_are_coloured_for_a_model_of_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings_of(monkeypatch, GREY, init="emoji").data.shape == (3, 32, 32)


def test_a_model_that_is_trained_on_keeps_the_budget_and_no_mirror(monkeypatch: pytest.MonkeyPatch) -> None:
    anew, trained_on = (settings_of(monkeypatch, COLOUR, **init) for init in ({}, {"init": "emoji"}))
    assert trained_on.train.mirror == anew.train.mirror == 0
    for name in ("images", "plain_images"):
        assert getattr(trained_on.vae, name) == getattr(anew.vae, name)
    assert trained_on.prior.images == anew.prior.images


@pytest.mark.slow
def test_a_given_bank_is_drawn_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Any, fitted: Path
) -> None:
    own = PartBank.of(strokes(), size=5, patch=4)
    rows: list[tuple[str, float]] = []

    def watch(row: Mapping[str, float], stage: str) -> None:
        rows.extend((f"{stage}/{name}", row["images_seen"]) for name in row if name.startswith("valid/"))

    where: dict[str, Any] = {"name": "bars", "storage": str(tmp_path)}
    unsized = {**SMALL, "bank": own}
    model = npdraw_dist.fit(corners(), **unsized, **where, callbacks=[watch])
    assert isinstance(model, NPDraw)
    assert torch.equal(model.bank_parts, own.parts)
    with pytest.raises(UserError, match="began with another bank"):
        npdraw_dist.fit(corners(), **{**unsized, "bank": PartBank.of(corners(), size=5, patch=4)}, **where)
    (saved,) = tmp_path.glob("bars-bank-*/bank.safetensors")
    assert torch.equal(PartBank.load(saved).parts, own.parts)
    assert {("prior/valid/nll", 64), ("vae/valid/elbo", 64)} <= set(rows)
    for picture in ("prior/parses.png", "vae/samples.png", "vae/reconstructions.png"):
        with Image.open(tmp_path / "bars" / picture) as shown:
            assert shown.width >= 8 * 12
    # A file.
    more = {"bank": str(tmp_path / "bars")}
    experiment = settings_of(monkeypatch, corners(), **{**SMALL, **more})
    assert (experiment.bank.size, experiment.grid.patch, experiment.grid.stride) == (5, 4, 4)
    for other in (3, 8):
        with pytest.raises(UserError, match=rf"leave out bank\.size {other}"):
            npdraw_dist.fit(corners(), **{**SMALL, **more, "bank.size": other})
    flags = ("--init.bank", str(tmp_path / "bars"), "--dry-run")
    of_five = ("--grid.patch", "5", "--grid.stride", "5")
    named = {**SMALL, **more, "grid": {"patch": 4}, "preset": "mnist_cpu"}  # whose stride is 5
    assert settings_of(monkeypatch, corners(), **named).grid.stride == 4
    assert "1x4x4 pixels; the run draws parts of 1x5x5" in refused(train.main, *flags, *of_five)
    assert "is for NP-DRAW" in refused(train.main, *flags, "--model.kind", "vae")
    with pytest.raises(UserError, match=r"leave out init\.bank"):
        npdraw_dist.fit(corners(), init=str(fitted / "bars"), bank=own, storage=str(tmp_path / "both"))
    assert "leave out init.bank" in refused(train.main, *flags, "--init.model", str(fitted / "bars"))
    assert "is another bank" in refused(train.main, *flags, "--init.sha256", "0" * 64)
    nowhere = refused(train.main, "--init.bank", str(tmp_path / "none"), "--dry-run")
    assert "holds no bank.safetensors" in nowhere


# Settings of a run that takes a second.
BUDGET: dict[str, Any] = {
    "prior": {"images": 64},
    "vae": {"images": 64, "plain_images": 0},
    "train": SMALL["train"],
    "eval": SMALL["eval"],
}


def tuned(fitted: Path, storage: Path) -> tuple[Experiment, Store]:
    """The settings and the store of a run `tuned` on the same images, from the model of `bars`."""
    data = {"source": "parquet", "path": str(fitted / "bars" / "data"), "test_fraction": 0.0}
    init = {"model": str(fitted / "bars")}
    flags = {"data": data, "init": init, "scale": {"num_workers": 0}, **BUDGET}
    experiment = resolve("digits", None, {**flags, "eval": {**BUDGET["eval"], "split": "valid"}})
    return experiment, Store.open(str(storage), "tuned")


def test_the_network_is_the_model_s(fitted: Path, tmp_path: Path) -> None:
    experiment, _ = tuned(fitted, tmp_path)
    assert (experiment.bank.size, experiment.grid.patch, experiment.prior.width) == (8, 4, 8)
    assert (experiment.data.image_size, experiment.data.channels) == (12, 1)
    assert (experiment.vae.encoder_width, experiment.vae.relaxed_images) == (8, 0)
    whole = experiment.model_dump(mode="json")
    assert resolve("digits", None, whole) == experiment
    whole["parse"]["steps"] = None  # as the default configuration says it: one for each place
    assert resolve("digits", None, whole).steps == experiment.steps


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        ({"grid": {"patch": 5, "stride": 5}}, r"grid\.patch 4, not 5"),
        ({"bank": {"size": 7}}, r"bank\.size 8, not 7"),
        ({"bank": {"size": 11}}, r"bank\.size 8, not 11"),
        ({"data": {"image_size": 16}, "parse": {"steps": 16}}, r"1x12x12, not 1x16x16"),
        ({"model": {"kind": "vae"}}, "model.kind is vae"),
        ({"init": {"sha256": "0" * 64}}, "has other weights"),
        ({"init": {"model": "nowhere/at/all"}}, "nowhere/at/all is not a model folder"),
    ],
)
def test_settings_that_do_not_fit_the_model_are_refused(
    fitted: Path, flags: dict[str, Any], error: str
) -> None:
    first = {"data": {"source": "parquet", "path": "x"}, "init": {"model": str(fitted / "bars" / "model")}}
    merged = {**first, **{name: {**first.get(name, {}), **values} for name, values in flags.items()}}
    with pytest.raises(UserError, match=error):
        resolve("digits", None, merged)


def test_a_sweep_starts_from_no_model(refused: Any) -> None:
    assert "section init is set" in refused(sweep.main, "--space", "smoke", "--init.model", "nowhere")


def test_another_model_is_another_run(fitted: Path, tmp_path: Path) -> None:
    """Wherever its weights lie."""
    experiment, _ = tuned(fitted, tmp_path)
    moved = shutil.copytree(fitted / "bars" / "model", tmp_path / "moved")
    same = experiment.model_copy(update={"init": experiment.init.model_copy(update={"model": str(moved)})})
    other = experiment.model_copy(update={"init": experiment.init.model_copy(update={"sha256": "1" * 64})})
    first, of_same, of_other = (
        [fingerprint_of(of, stage) for stage in ("bank", "parse", "prior", "vae")]
        for of in (experiment, same, other)
    )
    assert first == of_same
    assert not set(first) & set(of_other)


def losses(objective: Any, store: Store) -> dict[str, float]:
    images = validation_images(store, 16, 0)
    with torch.no_grad():
        found = objective.eval().evaluate(images, torch.Generator().manual_seed(0))
    return {name: float(value.mean()) for name, value in found.items()}


@pytest.fixture
def begun(fitted: Path, tmp_path: Path) -> tuple[Experiment, Store]:
    """With bank and parses."""
    experiment, store = tuned(fitted, tmp_path)
    store.claim(experiment)
    data.run(experiment, store)
    bank.run(experiment, store)
    parse.run(experiment, store)
    return experiment, store


def test_training_begins_at_the_model_s_loss(fitted: Path, begun: tuple[Experiment, Store]) -> None:
    """Not at that of a new network; the bank is the model's, so the parses are comparable."""
    experiment, store = begun
    model = NPDraw.from_pretrained(fitted / "bars" / "model").eval()
    assert torch.equal(bank.load_bank(experiment, store).parts, model.bank_parts)
    weights = source_model(experiment).state_dict()
    first = prior.make_objective(experiment, weights)
    own = losses(prior.PriorObjective(model.prior, 1e-3), store)["nll"]
    assert losses(first, store)["nll"] == own
    torch.manual_seed(0)
    anew = losses(prior.make_objective(experiment, {}), store)["nll"]
    assert own < anew - 1.0
    second = losses(vae.make_objective(experiment, weights), store)["elbo"]
    assert second == losses(VAEObjective(model, experiment.vae), store)["elbo"]
    scratch = {name: weights[name] for name in weights if name.startswith(("bank_parts", "prior."))}
    assert second > losses(vae.make_objective(experiment, scratch), store)["elbo"] + 1.0


def test_fit_starts_from_a_model(fitted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In memory or in a folder."""
    model = NPDraw.from_pretrained(fitted / "bars" / "model")
    begun: list[Experiment] = []
    real = fit.start

    def start(experiment: Experiment, *arguments: Any, **options: Any) -> Any:
        begun.append(experiment)
        if len(begun) == 2:
            raise Stopped
        return real(experiment, *arguments, **options)

    monkeypatch.setattr(fit, "start", start)
    found = npdraw_dist.fit(corners(), init=model, **BUDGET)
    assert isinstance(found, NPDraw)
    assert torch.equal(found.bank_parts, model.bank_parts)
    assert found.sample(2).shape == (2, 1, 12, 12)
    assert found.spec.prior == model.spec.prior
    with pytest.raises(Stopped):
        npdraw_dist.fit(corners(), init=str(fitted / "bars"), **BUDGET)
    assert begun[0].init.sha256 == begun[1].init.sha256
    with pytest.raises(UserError, match=r"needs bank\.size 8, not 12"):
        npdraw_dist.fit(corners(), init=model, **BUDGET, **{"bank.size": 12})  # type: ignore[arg-type]
    with pytest.raises(UserError, match="init is a Linear"):
        npdraw_dist.fit(corners(), init=torch.nn.Linear(1, 1), **BUDGET)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"is for grey images"):
        npdraw_dist.fit(np.zeros((9, 12, 12, 3), np.uint8), init=model, **BUDGET)


# As a run's settings make the network.
OF_SETTINGS: dict[str, Any] = {"prior": {**TINY_PRIOR, "mlp": 4 * TINY_PRIOR["width"]}}


def on_parquet(model: Path | str, /, **others: Any) -> dict[str, Any]:
    return {"data": {"source": "parquet", "path": "x"}, "init": {"model": str(model)}, **others}


@pytest.mark.parametrize("kind", ["vae", "vqvae", "draw"])
def test_a_baseline_goes_on_from_its_weights(kind: str, tmp_path: Path) -> None:
    """Its run has its kind, its sizes and its weights; a run from scratch has others."""
    model = tiny_baseline(kind, **(OF_SETTINGS if kind == "vqvae" else {}))
    model.save_pretrained(tmp_path)
    experiment = resolve("digits", None, on_parquet(tmp_path))
    assert experiment.model.kind == kind
    objective = vae.make_objective(experiment, source_model(experiment).state_dict())
    found = objective.model.state_dict()
    assert found.keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(value, found[name]), name
    pinned = experiment.model_dump(mode="json")
    other = resolve("digits", None, {**pinned, "init": {**pinned["init"], "sha256": None}})
    assert fingerprint_of(other, "vae") == fingerprint_of(experiment, "vae")
    pinned["init"] = {"model": None}
    assert fingerprint_of(resolve("digits", None, pinned), "vae") != fingerprint_of(experiment, "vae")


def test_settings_that_do_not_fit_a_baseline_are_refused(tmp_path: Path) -> None:
    tiny_baseline("vqvae", **OF_SETTINGS).save_pretrained(tmp_path)
    wrong = on_parquet(tmp_path, baseline={"codes": 9}, vae={"dropout": 0.5})
    with pytest.raises(UserError, match=r"needs baseline\.codes \d+, not 9; vae\.dropout 0\.0, not 0\.5"):
        resolve("digits", None, wrong)


def test_an_id_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a revision; the run keeps the id, and the SHA-256 of the weights that it found."""
    tiny_model(tiny_spec(image_shape=(1, 4, 4), steps=4, **OF_SETTINGS)).save_pretrained(tmp_path / "cached")
    monkeypatch.chdir(tmp_path)
    wanted: list[tuple[str, str | None]] = []

    def download(repo_id: str, *, revision: str | None, **_: Any) -> str:
        wanted.append((repo_id, revision))
        return str(tmp_path / "cached")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    experiment = resolve("digits", None, on_parquet("someone/tiny@v2"))
    assert set(wanted) == {("someone/tiny", "v2")}
    assert experiment.init.model == "someone/tiny@v2"
    local = resolve("digits", None, on_parquet(tmp_path / "cached"))
    assert experiment.init.sha256 == local.init.sha256
    assert experiment.prior.width == local.prior.width
