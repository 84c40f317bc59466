"""A run that starts from a trained model: `init.model` and `fit(init=...)`."""

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import npdraw_dist
from npdraw_dist import NPDraw, train
from npdraw_dist.config.load import merge, resolve
from npdraw_dist.config.schema import Experiment
from npdraw_dist.core.errors import UserError
from npdraw_dist.nn.objective import VAEObjective
from npdraw_dist.pipeline import fit, prior, run, vae
from npdraw_dist.pipeline.bank import load_bank
from npdraw_dist.pipeline.store import Store, fingerprint_of
from npdraw_dist.pipeline.train_stage import validation_images
from npdraw_dist.training.loop import Run
from tests.pipeline.test_fit import SMALL, strokes
from tune_spaces import sweep

# Flags and keyword arguments of a run that is over in a second.
BUDGET: dict[str, Any] = {
    "prior": {"images": 64},
    "vae": {"images": 64, "plain_images": 0},
    "train": {"batch_size": 16, "micro_batch": 16, "eval_every_images": 32, "augmented": 0.0},
    "eval": {"images": 4, "k": 2},
}


def corners(count: int = 60) -> Any:
    """Images of two bars that cross, which bars of one height do not make."""
    images = strokes(count)
    for number, image in enumerate(images):
        image[number % 9 : number % 9 + 2, number % 5 : number % 5 + 6] = 255
    return images


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The storage of a trained run `bars`."""
    storage = tmp_path_factory.mktemp("source")
    longer = {**SMALL, "prior": {**SMALL["prior"], "images": 1600}, "vae": {**SMALL["vae"], "images": 1600}}
    longer["train"] = {**SMALL["train"], "eval_every_images": 800}
    npdraw_dist.fit(strokes(), name="bars", storage=str(storage), **longer)
    return storage


def tuned(source: Path, storage: Path, **bank: Any) -> tuple[Experiment, Store]:
    """What a run `tuned` on the same images, from the model of `bars`, is made of."""
    data = {"source": "parquet", "path": str(source / "bars-images"), "test_fraction": 0.0}
    init = {"model": str(source / "bars")}
    flags = {"data": data, "init": init, "bank": bank, "scale": {"num_workers": 0}, **BUDGET}
    experiment = resolve("digits", None, {**flags, "eval": {**BUDGET["eval"], "split": "valid"}})
    return experiment, Store.open(str(storage), "tuned")


def flags_of(source: Path, storage: Path, *more: str) -> list[str]:
    words = ["--preset", "digits", "--storage", str(storage), "--name", "tuned", "--scale.num_workers", "0"]
    words += ["--init.model", str(source / "bars"), "--data.source", "parquet", "--eval.split", "valid"]
    words += ["--data.path", str(source / "bars-images"), "--data.test_fraction", "0"]
    for section, values in BUDGET.items():
        words += [word for key, value in values.items() for word in (f"--{section}.{key}", str(value))]
    return [*words, *more]


def test_the_network_is_the_model_s(source: Path, tmp_path: Path) -> None:
    experiment, _ = tuned(source, tmp_path, size=11)
    assert (experiment.bank.size, experiment.grid.patch, experiment.prior.width) == (11, 4, 8)
    assert (experiment.data.image_size, experiment.data.channels) == (12, 1)
    assert (experiment.vae.encoder_width, experiment.vae.relaxed_images) == (8, 0)
    assert experiment.init.sha256 is not None
    assert len(experiment.init.sha256) == 64
    assert resolve("digits", None, experiment.model_dump(mode="json")) == experiment
    whole = experiment.model_dump(mode="json")
    whole["parse"]["steps"] = None  # as the default configuration says it: one for each place
    assert resolve("digits", None, whole).steps == experiment.steps


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        ({"grid": {"patch": 5, "stride": 5}}, r"needs grid\.patch 4, not 5; grid\.stride 4, not 5"),
        ({"bank": {"size": 7}}, r"needs bank\.size 8 or more, not 7"),
        ({"prior": {"depth": 2}}, r"needs prior\.depth 1, not 2"),
        ({"data": {"image_size": 16}, "parse": {"steps": 16}}, r"images of 1x12x12, not 1x16x16"),
        ({"vae": {"likelihood": "logistic"}, "data": {"binarize": "none"}}, r"vae\.likelihood bernoulli"),
        ({"model": {"kind": "vae"}}, "model.kind is vae"),
        ({"init": {"sha256": "0" * 64}}, "has other weights than those that the run began with"),
        ({"init": {"model": "nowhere/at/all"}}, "init.model nowhere/at/all is no model folder"),
    ],
)
def test_what_does_not_fit_is_told_in_a_line(source: Path, flags: dict[str, Any], error: str) -> None:
    asked = {"data": {"source": "parquet", "path": "x"}, "init": {"model": str(source / "bars" / "model")}}
    merged = {**asked, **{name: {**asked.get(name, {}), **values} for name, values in flags.items()}}
    with pytest.raises(UserError, match=error):
        resolve("digits", None, merged)


def test_a_sweep_starts_from_no_model(refused: Any) -> None:
    error = refused(sweep.main, "--space", "smoke", "--init.model", "nowhere")
    assert "init.model is set, but the trials of a sweep train from scratch" in error


def test_another_model_is_another_run(source: Path, tmp_path: Path) -> None:
    """Wherever its weights lie."""
    experiment, _ = tuned(source, tmp_path)
    moved = shutil.copytree(source / "bars" / "model", tmp_path / "moved")
    same = experiment.model_copy(update={"init": experiment.init.model_copy(update={"model": str(moved)})})
    other = experiment.model_copy(update={"init": experiment.init.model_copy(update={"sha256": "1" * 64})})
    more, _ = tuned(source, tmp_path, size=11)
    stages = ("bank", "parse", "prior", "vae")
    of = {name: [fingerprint_of(e, s) for s in stages] for name, e in
          {"first": experiment, "same": same, "other": other, "more": more}.items()}  # fmt: skip
    assert of["first"] == of["same"]
    for name in ("other", "more"):
        assert not set(of["first"]) & set(of[name])


def losses(objective: Any, store: Store) -> dict[str, float]:
    images = validation_images(store, 16, 0)
    with torch.no_grad():
        found = objective.eval().evaluate(images, torch.Generator().manual_seed(0))
    return {name: float(value.mean()) for name, value in found.items()}


@pytest.fixture
def begun(source: Path, tmp_path: Path) -> tuple[Experiment, Store]:
    """With bank and parses."""
    train.main(flags_of(source, tmp_path, "--stages", "bank,parse"))
    return tuned(source, tmp_path)


def test_training_begins_at_the_model_s_loss(source: Path, begun: tuple[Experiment, Store]) -> None:
    """Not at that of a new network; the bank is the model's, so the parses are comparable."""
    experiment, store = begun
    model = NPDraw.from_pretrained(source / "bars" / "model").eval()
    bank = load_bank(experiment, store)
    assert torch.equal(bank.parts, model.bank_parts)
    weights = vae.start_weights(experiment, bank)
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


class Killed(Exception):
    pass


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Any
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    more = ("--bank.size", "11")
    train.main(flags_of(source, whole, *more))
    original = Run.update

    def die_at_three(self: Run, step: int, *rest: Any) -> None:
        if step == 3 and isinstance(self.objective, VAEObjective):
            raise Killed
        original(self, step, *rest)

    monkeypatch.setattr(Run, "update", die_at_three)
    with pytest.raises(Killed):
        train.main(flags_of(source, killed, *more))
    monkeypatch.setattr(Run, "update", original)
    fewer = flags_of(source, killed, "--bank.size", "10")
    assert "has another config (bank.size: 11 -> 10)" in refused(train.main, *fewer)
    train.main(flags_of(source, killed, *more))
    for name in ("bank/bank.safetensors", "model/model.safetensors"):
        assert (whole / "tuned" / name).read_bytes() == (killed / "tuned" / name).read_bytes()
    assert json.loads((killed / "tuned" / "bank" / "manifest.json").read_text())["k"] == 11


def test_fit_starts_from_a_model(source: Path, tmp_path: Path) -> None:
    """In memory or in a folder: the same run."""
    model = NPDraw.from_pretrained(source / "bars" / "model")
    extended: dict[str, Any] = {"bank.size": 12}
    found = npdraw_dist.fit(corners(), init=model, **BUDGET, **extended)
    assert isinstance(found, NPDraw)
    assert torch.equal(found.bank_parts[:8], model.bank_parts)
    assert found.sample(2).shape == (2, 1, 12, 12)
    assert found.spec.prior == model.spec.prior
    where: dict[str, Any] = {"name": "cross", "storage": str(tmp_path)}
    again = npdraw_dist.fit(corners(), init=str(source / "bars"), **where, **BUDGET, **extended)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in found.state_dict().items())
    with pytest.raises(UserError, match="init is a Linear; give a trained model"):
        npdraw_dist.fit(corners(), init=torch.nn.Linear(1, 1), **BUDGET)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"is for grey images.*-init, of 1x12x12 images"):
        npdraw_dist.fit(np.zeros((9, 12, 12, 3), np.uint8), init=model, **BUDGET)


@pytest.mark.slow
def test_the_examples_of_the_page_run(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The Python one with a small budget; the command up to its settings."""
    page = (Path(__file__).parents[2] / "docs" / "fine-tuning.md").read_text()
    (python,) = re.findall(r"```python\n(.*?)```", page, re.S)
    (command,) = re.findall(r"```bash\n(.*?)```", page, re.S)
    (tmp_path / "runs").mkdir()
    shutil.copytree(source / "bars" / "model", tmp_path / "runs" / "digits" / "model")
    np.save(tmp_path / "images.npy", corners(40))
    monkeypatch.chdir(tmp_path)
    real = fit.resolve
    monkeypatch.setattr(fit, "resolve", lambda preset, file, asked: real(preset, file, merge(asked, BUDGET)))
    made: dict[str, Any] = {}
    exec(python, made)
    assert made["model"].spec.steps == 9
    npdraw, name, *flags = shlex.split(command)
    assert (npdraw, name) == ("npdraw", "train")
    capsys.readouterr()
    train.main([*flags, "--dry-run"])
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["init"]["model"] == "runs/digits"
    assert (shown["data"]["image_size"], shown["bank"]["size"]) == (12, 8)


def test_too_many_new_parts_are_told_before_anything_is_read(source: Path, tmp_path: Path) -> None:
    experiment, _ = tuned(source, tmp_path, size=5008)
    with pytest.raises(
        UserError, match=r"bank\.size adds 5000 parts to those of init.model, but 48 training images"
    ):
        run.require_images(experiment, {"train": 48, "valid": 6}, ["bank"])
