"""`npdraw_dist.fit`: images of any kind in, a model out."""

import json
import shutil
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import npdraw_dist
from npdraw_dist import NPDraw
from npdraw_dist.config.load import merge, resolve
from npdraw_dist.config.schema import Experiment
from npdraw_dist.core.parts import Batch
from npdraw_dist.data import rows
from npdraw_dist.data.splits import Split
from npdraw_dist.fitting import __main__ as fit_command
from npdraw_dist.fitting import fit, fit_images, fit_source
from npdraw_dist.fitting.fit import suited
from npdraw_dist.fitting.fit_images import pictures_of
from npdraw_dist.nn.objective import PriorObjective
from npdraw_dist.pipeline import data, probe
from npdraw_dist.pipeline.data import Given, RunData
from npdraw_dist.pipeline.probe import budgets
from npdraw_dist.pipeline.store import Store
from npdraw_dist.system.errors import UserError
from npdraw_dist.system.lease import LeaseHeld
from tests.fitting.conftest import LONGER
from tests.helpers.in_process import Stopped
from tests.helpers.tiny_fit import (
    GREY,
    SMALL,
    a_callback_ends,
    corners,
    fit_few,
    settings_of,
    started,
    strokes,
)


def test_a_named_run_is_kept_and_found_again(
    fitted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(fitted, tmp_path, dirs_exist_ok=True)
    where: dict[str, Any] = {"name": "bars", "storage": str(tmp_path)}
    model = npdraw_dist.fit(strokes(), **where, **LONGER)
    assert "all done" in capsys.readouterr().out
    assert isinstance(model, NPDraw)
    assert model.results is not None
    assert model.history is not None
    for stage, name in (("prior", "valid/nll"), ("vae", "valid/elbo")):
        assert len([row[name] for row in model.history[stage]]) >= 2
    metrics = json.loads((tmp_path / "bars" / "metrics.json").read_text())
    for name in ("n", "k", "nll_iwae", "elbo", "bits_per_dim"):
        assert model.results[name] == metrics[f"valid/{name}"], name
    assert "## Numbers" in (tmp_path / "bars" / "model" / "README.md").read_text()
    assert (tmp_path / "bars" / "model" / "samples.png").is_file()
    for name, value in NPDraw.from_pretrained(fitted / "bars" / "model").state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
    assert [path.name for path in tmp_path.iterdir()] == ["bars"]  # nothing lies beside the run
    before = written(tmp_path / "bars")
    assert {"data", "parses"} <= {path.parts[0] for path in before}
    for images, valid in ((strokes()[::-1].copy(), None), (strokes(), strokes(9))):
        with pytest.raises(UserError, match="differ from those that it has read"):
            npdraw_dist.fit(images, valid=valid, **where, **LONGER)
    assert written(tmp_path / "bars") == before
    with pytest.raises(UserError, match=r"vae.images: 1600 -> 64"):
        npdraw_dist.fit(strokes(), **where, **{**LONGER, "vae": SMALL["vae"]})


def written(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.parquet")}


@pytest.mark.parametrize(
    ("options", "workers"),
    [({}, 0), ({"ray": True}, 1), ({"num_workers": "1:2"}, "1:2")],
)
def test_where_it_trains(options: dict[str, Any], workers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings_of(monkeypatch, strokes(), **SMALL, **options).scale.num_workers == workers


def test_settings_by_section_or_with_a_dot() -> None:
    flat = {f"{section}.{key}": value for section, values in SMALL.items() for key, value in values.items()}
    model = npdraw_dist.fit(strokes(30), **flat, seed=3)
    assert model.spec.data is not None
    assert model.spec.data.seed == 3
    with pytest.raises(UserError, match="images_seen is no section of settings"):
        npdraw_dist.fit(strokes(), images_seen=5)
    with pytest.raises(UserError, match=r"unknown key vae\.imges; did you mean"):
        npdraw_dist.fit(strokes(), vae={"imges": 5})


def with_condition(kind: str) -> dict[str, Any]:
    return merge(SMALL, {"prior": {"condition": kind}})


@pytest.mark.slow
def test_images_with_labels_make_a_conditioned_model() -> None:
    images = strokes()
    by_class = npdraw_dist.fit(images, labels=["high" if n % 7 < 3 else "low" for n in range(60)], **SMALL)
    assert isinstance(by_class, NPDraw)
    assert by_class.vocabulary.known == ["high", "low"]
    assert by_class.draw(2, seed=0, condition=["low", "high"]).images.shape == (2, 1, 12, 12)
    assert set(by_class.classify(images[:5]).tolist()) <= {0, 1}
    words = [f"bar {n % 7} from the top" for n in range(60)]
    by_words = npdraw_dist.fit(images, labels=words, **with_condition("words"))
    assert isinstance(by_words, NPDraw)
    assert {"bar", "top", "6"} <= set(by_words.vocabulary.known)
    assert len(by_words.sample(2, seed=0, condition="bar 3 from the top")) == 2


def test_labels_that_do_not_match_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="4 labels for 5 images"):
        npdraw_dist.fit(GREY, labels=[1, 2, 3, 4])
    for number in range(3):
        Image.fromarray(GREY[number]).save(tmp_path / f"{number}.png")
    with pytest.raises(UserError, match="labels is a list, but images is a folder"):
        npdraw_dist.fit(tmp_path, labels=[1, 2, 3])
    for kind, name in (("class", "classes"), ("words", "words")):
        with pytest.raises(UserError, match=f"have no {name}"):
            npdraw_dist.fit(GREY.repeat(12, 0), storage=tmp_path / "runs", **with_condition(kind))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("images", "options", "says"),
    [
        (GREY, {"data": {"path": "elsewhere"}}, "data.path follows from the images"),
        (GREY, {"minutes": -3}, "minutes is -3"),
        (GREY, {"minutes": "10"}, "minutes is '10'"),
        (GREY, {"minutes": 5, "vae": {"images": 100}}, "minutes decides vae.images"),
        (GREY, {"model": {"kind": "vae"}}, "of kind vae; use npdraw train --model.kind vae"),
        (GREY, {"minutes": 5, "num_workers": 1}, "training in this process"),
        (GREY, {"image_size": 0}, "image_size is 0 is no"),
        (GREY, {"data": {"image_size": -5}}, "image_size is -5 is no"),
        (GREY, {"name": ""}, "is not a run name"),
        (GREY, {"vae": {"imagess": 3}}, "imagess"),
        (GREY, {"bank": "nowhere"}, "nowhere"),
        ({"train": GREY, "test": GREY}, {}, "a mapping of train, test"),
    ],
)
def test_a_fit_that_is_refused_leaves_nothing(
    images: Any, options: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=says):
        npdraw_dist.fit(images, **{"name": "mine", "storage": tmp_path, **options})
    assert list(tmp_path.rglob("*.parquet")) == []


def test_a_fit_may_be_kept_where_pyarrow_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in a store whose name says nothing of its scheme. It is of this process alone."""
    monkeypatch.setattr("npdraw_dist.distributed.tasks.ray_runs", lambda: False)
    model = npdraw_dist.fit(strokes(), name="bars", storage=f"memory://{uuid.uuid4().hex}", **SMALL)
    assert model.sample(2, seed=0).shape == (2, 1, 12, 12)


@pytest.mark.slow
def test_one_of_few_images_is_held_out_though_the_hash_takes_none(tmp_path: Path) -> None:
    where: dict[str, Any] = {"name": "few", "storage": str(tmp_path), "data": {"valid_fraction": 0.01}}
    model = npdraw_dist.fit(strokes(4), **where, **SMALL)
    assert isinstance(model, NPDraw)
    assert model.results is not None
    assert model.results["n"] == 1
    manifest = json.loads((tmp_path / "few" / "data" / "manifest.json").read_text())
    assert manifest["splits"] == {"train": 3, "valid": 1}


def test_images_stay_when_a_fit_is_refused(fitted: Path, tmp_path: Path) -> None:
    """By a mistake, or since another process has the run."""
    shutil.copytree(fitted, tmp_path, dirs_exist_ok=True)
    before = written(tmp_path)
    assert before
    where: dict[str, Any] = {"name": "bars", "storage": tmp_path}
    with pytest.raises(UserError, match="imagess"):
        npdraw_dist.fit(strokes(), **where, vae={"imagess": 3})
    (tmp_path / "bars/vae/manifest.json").unlink()
    with Store.open(str(tmp_path), "bars").lease(), pytest.raises(LeaseHeld):
        npdraw_dist.fit(strokes(), **where, **LONGER)
    assert written(tmp_path) == before


def given_of(images: Any, labels: Any = None) -> tuple[Experiment, Given]:
    """What `fit` gives to the stage `data`."""
    looked = fit_images.look((images, labels), (None, None), {"prior": {"condition": "class"}})
    run = Store.open("nowhere", "run")
    experiment = fit._experiment(looked, None, {**SMALL, "init": {}}, 0, None, run)
    return experiment, fit_source.given(looked, experiment)


def test_images_of_a_fit_that_was_killed_are_known_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of a file may be left. Other images replace those of an unfinished stage and are refused later."""
    store, labels = Store.open(str(tmp_path), "mine"), ["a", "b"] * 30
    (experiment, known), (_, reverse) = given_of(strokes(), labels), given_of(strokes()[::-1].copy(), labels)
    store.claim(experiment)

    def killed(*_: Any) -> None:
        raise Stopped

    for given in (reverse, known):
        with monkeypatch.context() as patch:
            patch.setattr(data, "manifest_of", killed)
            with pytest.raises(Stopped):
                data.run(experiment, store, RunData(experiment, given))
    files = sorted((tmp_path / "mine/data").rglob("*.parquet"))
    assert [file.parent.name for file in files] == ["train", "valid"]
    before = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in files}
    half = files[0].with_name(f"{files[0].name}.1a2b3c4d.part")
    half.write_bytes(b"PAR1")
    manifest = data.run(experiment, store, RunData(experiment, known))
    assert manifest["images"] == 60
    assert {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in files} == before
    assert not half.exists()
    RunData(experiment, given_of(strokes(), labels)[1]).require_same(store)
    others = (strokes()[::-1].copy(), labels), (strokes(), ["a", "c"] * 30), (strokes(), ["b", "a"] * 30)
    for images, other_labels in others:
        with pytest.raises(UserError, match="differ from those that it has read"):
            RunData(experiment, given_of(images, other_labels)[1]).require_same(store)


def test_a_side_among_the_settings_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    among = settings_of(monkeypatch, GREY, data={"image_size": 24})
    given = settings_of(monkeypatch, GREY, image_size=24)
    assert (among.data.image_size, among.bank.size) == (24, given.bank.size)


def rows_of(given: Given, split: Split) -> rows.Rows:
    """The images of a split, as the stage `data` reads them."""
    return rows.Rows.cat([shard.read() for shard in given.open(Store.open("nowhere", "run")).shards(split)])


def test_own_images_for_validation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They alone validate, in the form of the others, with the numbers of their classes."""
    others = np.stack([np.full((16, 16, 3), 40 * n, np.uint8) for n in range(4)])
    labels, valid_labels = ["b" if n % 2 else "a" for n in range(60)], ["b", "b", "a", "b"]
    options = {"labels": labels, "valid": others, "valid_labels": valid_labels, **SMALL}
    where = {"name": "bars", "storage": str(tmp_path)}
    _, given = started(monkeypatch, strokes(), **options, **where)
    assert len(rows_of(given, "train")) == 60
    found = rows_of(given, "valid")
    assert found.images.shape == (4, 1, 12, 12)
    assert found.images.mean((1, 2, 3)).tolist() == [0, 40, 80, 120]
    assert found.known_labels().tolist() == [1, 1, 0, 1]
    with pytest.raises(UserError, match="give valid_labels"):
        npdraw_dist.fit(strokes(), labels=labels, valid=others)
    with pytest.raises(UserError, match="give valid too"):
        npdraw_dist.fit(strokes(), labels=labels, valid_labels=valid_labels)
    with pytest.raises(UserError, match="no classes by name"):
        npdraw_dist.fit(strokes(), valid=others, valid_labels=valid_labels)
    with pytest.raises(UserError, match="a class 'c', which no other"):
        npdraw_dist.fit(strokes(), labels=labels, valid=others, valid_labels=["a", "b", "b", "c"])


def test_folders_for_validation_have_the_classes_of_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("images/a/1", "images/b/1", "images/b/2", "valid/b/1", "other/c/1"):
        path = tmp_path / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(GREY[0]).save(path)
    where: dict[str, Any] = {"storage": str(tmp_path / "runs"), "bank": {"size": 2}}
    _, given = started(monkeypatch, tmp_path / "images", valid=tmp_path / "valid", **where)
    assert rows_of(given, "valid").known_labels().tolist() == [1]
    with pytest.raises(UserError, match="a class 'c'"):
        npdraw_dist.fit(tmp_path / "images", valid=tmp_path / "other", **where)
    (tmp_path / "valid/b/2.png").write_bytes(b"no picture")
    listed = {"labels": ["a", "b"] * 30, "storage": str(tmp_path / "list")}
    _, given = started(monkeypatch, corners(), valid=tmp_path / "valid", **SMALL, **listed)
    assert rows_of(given, "valid").known_labels().tolist() == [1]
    assert "1 of 62 pictures are skipped" in capsys.readouterr().out


def test_what_a_callback_raises_ends_the_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a_callback_ends(capsys, name="bars", storage=str(tmp_path), num_workers=0)


def test_budgets_take_about_the_time_that_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """By steps whose seconds are known: the stages fill the time that is not of other work."""
    settings = merge(suited(pictures_of(strokes(60)))[1], {"data": {"source": "parquet", "path": "x"}})
    experiment = resolve("digits", None, settings)
    prior_s, relaxed_s, hard_s = 1.0, 4.0, 2.0
    step = probe.timed_step

    def timed_step(run: Any, batch: Batch, hard: bool = False) -> float:
        assert step(run, batch, hard) > 0
        return prior_s if isinstance(run.objective, PriorObjective) else hard_s if hard else relaxed_s

    monkeypatch.setattr(probe, "timed_step", timed_step)
    relaxed_share, size = experiment.vae.relaxed_share, experiment.train.batch_size
    per_image = (relaxed_share * relaxed_s + (1 - relaxed_share) * hard_s) / size
    for minutes in (60.0, 240.0):
        found = budgets(experiment, minutes)
        images = found["vae"]["images"]
        seconds = found["prior"]["images"] * prior_s / size + images * per_image
        assert seconds == pytest.approx(minutes * 60 * (1 - probe.OTHER_SHARE), rel=0.01)
        assert found["vae"]["relaxed_images"] == pytest.approx(relaxed_share * images, rel=0.01)


def test_the_command_fits_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same command again keeps its budgets, though a probe would find others."""
    for number, image in enumerate(strokes(60)):
        (tmp_path / "mine").mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / "mine" / f"{number}.png")
    fit_few(60, monkeypatch)
    monkeypatch.setattr(fit, "budgets", lambda *_: {"vae": {"images": 80}})
    command = [str(tmp_path / "mine"), "--minutes", "1", "--storage", str(tmp_path / "runs")]
    fit_command.main(command)
    monkeypatch.setattr(fit, "budgets", lambda *_: {"vae": {"images": 96}})
    fit_command.main(command)
    printed = capsys.readouterr()
    assert "all done" in printed.out
    assert "resumes with the budgets that it began with" in printed.out + printed.err
    run = Store.open(str(tmp_path / "runs"), "mine")
    assert run.config().vae.images == 80
    assert npdraw_dist.load(tmp_path / "runs" / "mine").sample(2).shape == (2, 1, 12, 12)
    with pytest.raises(SystemExit) as ended:
        fit_command.main(["-h"])
    assert ended.value.code == 0
    with pytest.raises(UserError, match="among the pictures"):
        fit_command.main([str(tmp_path), "--storage", str(tmp_path / "runs")])
