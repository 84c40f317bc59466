"""`npdraw_dist.fit`: images of any kind in, a model out; and a run that starts from a trained model."""

import json
import shutil
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import TensorDataset

import npdraw_dist
from npdraw_dist import NPDraw, PartBank, fit_folder, train
from npdraw_dist.config.load import merge, resolve
from npdraw_dist.config.schema import Experiment
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.lease import LeaseHeld
from npdraw_dist.core.parts import Batch
from npdraw_dist.core.vocabulary import as_python
from npdraw_dist.data import rows
from npdraw_dist.data.splits import Split
from npdraw_dist.nn.baselines.vqvae import VQVAE
from npdraw_dist.nn.objective import PriorObjective, VAEObjective
from npdraw_dist.pipeline import bank, data, fit, fit_images, fit_source, parse, prior, probe, run, vae
from npdraw_dist.pipeline.data import Given, RunData
from npdraw_dist.pipeline.fit import suited
from npdraw_dist.pipeline.fit_images import labelled, pictures_of
from npdraw_dist.pipeline.fit_source import held_of_few
from npdraw_dist.pipeline.models import source_model
from npdraw_dist.pipeline.probe import budgets
from npdraw_dist.pipeline.store import Store, fingerprint_of
from npdraw_dist.pipeline.train_stage import validation_images
from tests.helpers.in_process import Stopped
from tests.helpers.tiny_baselines import TINY_PRIOR, tiny_baseline
from tests.helpers.tiny_fit import SMALL, a_callback_ends, fit_few, strokes
from tests.helpers.tiny_models import tiny_model, tiny_spec
from tests.pipeline.conftest import LONGER
from tune_spaces import sweep

GREY = np.random.default_rng(0).integers(0, 256, (5, 8, 8), dtype=np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    "images",
    [
        GREY,
        torch.from_numpy(GREY)[:, None] / 255,
        [(Image.fromarray(image), 3) for image in GREY],
        TensorDataset(torch.from_numpy(GREY)[:, None] / 255, torch.arange(5)),
        SimpleNamespace(iter_rows=lambda: ({"image": image, "label": 0} for image in GREY)),  # as Ray's
    ],
)
def test_grey_images_of_any_kind(images: Any) -> None:
    found = pictures_of(images)
    np.testing.assert_array_equal(found.images, GREY[:, None])
    assert found.ids == [f"{number:08d}" for number in range(5)]


def test_a_series_of_pandas_is_read_by_place(tmp_path: Path) -> None:
    """A table that was shuffled or filtered has an index of its own."""
    pd = pytest.importorskip("pandas")
    for number, image in enumerate(GREY):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    table = pd.DataFrame({"path": [str(tmp_path / f"{n}.png") for n in range(5)], "label": list("abcde")})
    shuffled = table.iloc[[3, 0, 4, 1]]
    found, classes = labelled(pictures_of(shuffled["path"]), shuffled["label"], "class")
    np.testing.assert_array_equal(found.images[:, 0], GREY[[3, 0, 4, 1]])
    assert [classes[n] for n in found.known_labels()] == ["d", "a", "e", "b"]


def test_a_folder_is_read_with_those_that_it_links_to_and_what_cannot_be_read_is_listed(
    tmp_path: Path,
) -> None:
    for name, kind in (("pictures/dogs/0.jfif", "JPEG"), ("elsewhere/1.png", "PNG")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(GREY[0]).save(tmp_path / name, kind)
    (tmp_path / "pictures" / "cats").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "pictures" / "cats" / "back").symlink_to(tmp_path / "pictures")
    (tmp_path / "pictures" / "photo.HEIC").write_bytes(b"of a telephone")
    found = pictures_of(tmp_path / "pictures")
    assert found.ids == ["cats/1.png", "dogs/0.jfif"]
    assert [one.id for one in found.rejects] == ["photo.HEIC"]


def test_colour_images() -> None:
    expected = COLOUR.transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(pictures_of(torch.from_numpy(COLOUR) / 255).images, expected)


@pytest.mark.parametrize(
    ("images", "error"),
    [
        ([], "no images"),
        (GREY.astype(np.int64), "int64"),
        (GREY[0], r"\(8, 8\)"),
        (7, "int"),
        ([[Image.fromarray(GREY[0]), 3]], r"a list of several things; give \(picture, label\)"),
        ([()], r"shape \(0,\)"),
        ("s3://bucket/pictures", "are at s3"),
    ],
)
def test_what_is_no_image_is_named(images: Any, error: str) -> None:
    with pytest.raises(UserError, match=error):
        pictures_of(images)


def chosen(images: NDArray[np.uint8]) -> tuple[str, dict[str, Any]]:
    return suited(rows.Rows([str(i) for i in range(len(images))], images))


def test_the_settings_follow_from_the_images() -> None:
    binary = np.zeros((100, 1, 28, 28), np.uint8)
    binary[..., 10:18] = 255
    preset, settings = chosen(binary)
    assert (preset, settings["data"]["binarize"]) == ("digits", "threshold")
    assert settings["vae"] == {"likelihood": "bernoulli"}
    assert settings["grid"] == {"downscale": 1, "background": "black"}
    smoothed = binary.copy()
    smoothed[..., 9] = 128
    assert chosen(smoothed)[1]["data"]["binarize"] == "dynamic"
    shaded = np.full((100, 1, 40, 40), 128, np.uint8)
    preset, settings = chosen(shaded)
    assert (preset, settings["grid"]["downscale"]) == ("emoji64", 2)
    assert settings["vae"]["likelihood"] == "logistic_mixture"
    preset, settings = chosen(np.full((300, 3, 32, 32), 255, np.uint8))
    assert (preset, settings["grid"]["background"]) == ("emoji", "white")
    assert settings["bank"]["size"] == 300 * 64 // 50
    assert chosen(np.zeros((9000, 3, 32, 32), np.uint8))[1]["bank"]["size"] == 1000
    for images in (binary, shaded, np.full((300, 3, 64, 64), 255, np.uint8)):
        preset, settings = chosen(images)
        asked = {**settings, "data": {**settings["data"], "source": "parquet", "path": "x"}}
        assert resolve(preset, None, asked).scale.here
    for side, scale in ((36, 1), (64, 2), (96, 3), (100, 4), (128, 4)):
        assert chosen(np.zeros((4, 1, side, side), np.uint8))[1]["grid"]["downscale"] == scale
    for side in (61, 160):
        with pytest.raises(UserError, match=f"image_size {side}"):
            chosen(np.zeros((4, 1, side, side), np.uint8))


def test_threads_read_a_large_folder_as_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, image in enumerate(COLOUR):
        (tmp_path / "ab"[number % 2]).mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / "ab"[number % 2] / f"{number}.png")
    whole = (tmp_path / "a/0.png").read_bytes()
    (tmp_path / "b/cut.png").write_bytes(whole[: len(whole) // 2])
    alone = pictures_of(tmp_path)
    monkeypatch.setattr(fit_images, "AT_ONCE", 0)
    pools: list[int] = []

    def pool(threads: int) -> ThreadPoolExecutor:
        pools.append(threads)
        return ThreadPoolExecutor(threads)

    monkeypatch.setattr(fit_images, "ThreadPoolExecutor", pool)
    found = pictures_of(tmp_path)
    assert pools == [torch.get_num_threads()]
    assert found.ids == alone.ids
    assert [reject.id for reject in found.rejects] == ["b/cut.png"]
    assert found.rejects == alone.rejects
    np.testing.assert_array_equal(found.images, alone.images)
    np.testing.assert_array_equal(found.known_labels(), alone.known_labels())


@pytest.mark.parametrize(("side", "chosen_side"), [(60, 60), (61, 64)])
def test_pictures_of_one_small_size_keep_it_where_a_canvas_fits_it(side: int, chosen_side: int) -> None:
    assert pictures_of([Image.new("L", (side, side))] * 2).images.shape[-1] == chosen_side


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
        with pytest.raises(UserError, match="are not those that it has read"):
            npdraw_dist.fit(images, valid=valid, **where, **LONGER)
    assert written(tmp_path / "bars") == before
    with pytest.raises(UserError, match=r"vae.images: 1600 -> 64"):
        npdraw_dist.fit(strokes(), **where, **{**LONGER, "vae": SMALL["vae"]})


def written(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.parquet")}


@pytest.mark.parametrize(
    ("asked", "workers"),
    [({}, 0), ({"ray": True}, 1), ({"num_workers": "1:2"}, "1:2")],
)
def test_where_it_trains(asked: dict[str, Any], workers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings_of(monkeypatch, strokes(), **SMALL, **asked).scale.num_workers == workers


def test_settings_by_section_or_with_a_dot() -> None:
    """Here of a baseline."""
    flat = {f"{section}.{key}": value for section, values in SMALL.items() for key, value in values.items()}
    flat |= {"model.kind": "vae", "baseline.width": 8, "baseline.latents": 4}
    model = npdraw_dist.fit(strokes(30), **flat, seed=3)
    assert type(model).__name__ == "ConvVAE"
    assert model.spec.data is not None
    assert model.spec.data.seed == 3
    with pytest.raises(UserError, match="images_seen is no section of settings"):
        npdraw_dist.fit(strokes(), images_seen=5)
    with pytest.raises(UserError, match=r"unknown key vae\.imges; did you mean"):
        npdraw_dist.fit(strokes(), vae={"imges": 5})


def with_condition(kind: str) -> dict[str, Any]:
    return merge(SMALL, {"prior": {"condition": kind}})


@pytest.mark.slow
def test_images_with_labels_make_a_model_that_is_asked(capsys: pytest.CaptureFixture[str]) -> None:
    images = strokes()
    by_class = npdraw_dist.fit(images, labels=["high" if n % 7 < 3 else "low" for n in range(60)], **SMALL)
    assert isinstance(by_class, NPDraw)
    assert by_class.vocabulary.known == ["high", "low"]
    assert by_class.draw(2, seed=0, condition=["low", "high"]).images.shape == (2, 1, 12, 12)
    assert set(by_class.classify(images[:5]).tolist()) <= {0, 1}
    words = [f"bar {n % 7} from the top" for n in range(60)]
    told = npdraw_dist.fit(images, labels=words, **with_condition("words"))
    assert isinstance(told, NPDraw)
    assert {"bar", "top", "6"} <= set(told.vocabulary.known)
    assert len(told.sample(2, seed=0, condition="bar 3 from the top")) == 2


@pytest.mark.parametrize(
    ("labels", "kind", "classes"),
    [
        ([3, 0, 0, 1, 3], None, ("0", "1", "2", "3")),
        (np.array([1, 1, 0, 1, 0]), None, ("0", "1")),
        (["b", "a", "a", "b", "b"], None, ("a", "b")),
        (["a b", "c", "d", "e", "f"], None, ()),
        (["a b", "c", "d", "e", "f"], "class", ("a b", "c", "d", "e", "f")),
        (list(torch.tensor([10, 2, 0, 1, 3])), None, tuple(map(str, range(11)))),
        ([np.int64(10), *map(np.int64, [2, 0, 1, 3])], None, tuple(map(str, range(11)))),
        ([True, False, False, True, True], None, ("False", "True")),
        ([3_000_000, 1, 1, 3_000_000, 1], None, ("1", "3000000")),
        (pa.array([10, 2, 0, 1, 3]), None, tuple(map(str, range(11)))),
    ],
)
def test_labels_are_classes_or_words(labels: Any, kind: str | None, classes: tuple[str, ...]) -> None:
    found, names = labelled(pictures_of(GREY), labels, kind)
    assert names == classes
    given = [str(label) for label in as_python(labels)]
    assert (found.words if not classes else [classes[number] for number in found.known_labels()]) == given


@pytest.mark.parametrize(
    ("labels", "kind", "classes", "found"),
    [
        ([3, -1, 0, 1, -1], None, ("0", "1", "2", "3"), [3, -1, 0, 1, -1]),
        (np.array([-1, 1, 1, 0, 0]), None, ("0", "1"), [-1, 1, 1, 0, 0]),
        ([1, None, 0, -1, 1], None, ("0", "1"), [1, -1, 0, -1, 1]),
        (np.array([1.0, np.nan, 0.0, -1.0, 1.0]), None, ("0", "1"), [1, -1, 0, -1, 1]),  # as pandas has them
        ([None, "b", "a", float("nan"), "b"], "class", ("a", "b"), [-1, 1, 0, -1, 1]),
        ([None, "b", "-1", "b", "b"], None, ("-1", "b"), [-1, 1, 0, 1, 1]),
        ([None, "a b", "c", "d", float("nan")], None, (), ["", "a b", "c", "d", ""]),
        ([None] * 5, "words", (), [""] * 5),
    ],
)
def test_labels_that_are_not_known_are_no_class(
    labels: Any, kind: str | None, classes: tuple[str, ...], found: list[Any]
) -> None:
    told, names = labelled(pictures_of(GREY), labels, kind)
    assert names == classes
    assert (told.known_labels().tolist() if classes else told.words) == found


def test_labels_none_of_which_is_known_are_refused() -> None:
    for labels in ([-1] * 5, [None] * 5):
        with pytest.raises(UserError, match="no label says what an image shows"):
            labelled(pictures_of(GREY), labels)


def test_labels_that_do_not_match_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="4 labels for 5 images"):
        npdraw_dist.fit(GREY, labels=[1, 2, 3, 4])
    for number in range(3):
        Image.fromarray(GREY[number]).save(tmp_path / f"{number}.png")
    with pytest.raises(UserError, match="a folder are its folders"):
        npdraw_dist.fit(tmp_path, labels=[1, 2, 3])
    for kind, name in (("class", "classes"), ("words", "words")):
        with pytest.raises(UserError, match=f"have no {name}"):
            npdraw_dist.fit(GREY.repeat(12, 0), storage=tmp_path / "runs", **with_condition(kind))
    assert not (tmp_path / "runs").exists()


def test_the_label_of_an_item_may_be_a_tensor() -> None:
    for label in (3, np.int64(3), torch.tensor(3)):
        assert pictures_of([(GREY[0], label), (GREY[1], label)]).known_labels().tolist() == [3, 3]


@pytest.mark.parametrize(
    ("images", "options", "says"),
    [
        (GREY, {"data": {"path": "elsewhere"}}, "data.path follows from the images"),
        (GREY, {"minutes": -3}, "minutes is -3"),
        (GREY, {"minutes": "10"}, "minutes is '10'"),
        (GREY, {"minutes": 5, "vae": {"images": 100}}, "minutes decides vae.images"),
        (GREY, {"minutes": 5, "model": {"kind": "vae"}}, "the model is of kind vae"),
        (GREY, {"minutes": 5, "num_workers": 1}, "training in this process"),
        (GREY, {"image_size": 0}, "image_size is 0"),
        (GREY, {"data": {"image_size": -5}}, "image_size is -5"),
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
    monkeypatch.setattr("npdraw_dist.data.tasks.ray_runs", lambda: False)
    model = npdraw_dist.fit(strokes(), name="bars", storage=f"memory://{uuid.uuid4().hex}", **SMALL)
    assert model.sample(2, seed=0).shape == (2, 1, 12, 12)


@pytest.mark.slow
def test_of_few_images_one_is_held_out_though_the_hash_takes_none(tmp_path: Path) -> None:
    where: dict[str, Any] = {"name": "few", "storage": str(tmp_path), "data": {"valid_fraction": 0.01}}
    model = npdraw_dist.fit(strokes(4), **where, **SMALL)
    assert isinstance(model, NPDraw)
    assert model.results is not None
    assert model.results["n"] == 1
    manifest = json.loads((tmp_path / "few" / "data" / "manifest.json").read_text())
    assert manifest["splits"] == {"train": 3, "valid": 1}


def held_of(count: int, each: int = 1, share: float = 0.1) -> tuple[rows.Rows, rows.Rows | None]:
    """held: of `count` pictures, each of which comes `each` times."""
    images = np.repeat(np.arange(count, dtype=np.uint8), each).reshape(-1, 1, 1, 1)
    found = rows.Rows([f"{number}.png" for number in range(len(images))], images)
    settings = resolve("emoji", None, {"data": {"valid_fraction": share}})
    return held_of_few(found, settings)


def test_images_are_held_out_by_their_hash_where_that_takes_some() -> None:
    kept, held = held_of(200)
    assert held is None
    assert len(kept) == 200
    assert held_of(7, share=0.0)[1] is None


@pytest.mark.parametrize("count", range(2, 30))
def test_copies_of_few_images_are_in_one_split(count: int) -> None:
    kept, held = held_of(count, each=2, share=0.001)
    assert held is not None
    assert len(set(held.images.ravel().tolist())) == 1
    assert sorted([*kept.images.ravel(), *held.images.ravel()]) == sorted([*range(count)] * 2)
    assert not set(kept.images.ravel().tolist()) & set(held.images.ravel().tolist())


def test_a_single_picture_is_refused() -> None:
    with pytest.raises(UserError, match="two different pictures"):
        held_of(1, each=3, share=0.001)


def test_images_that_were_there_stay_when_a_fit_is_refused(fitted: Path, tmp_path: Path) -> None:
    shutil.copytree(fitted, tmp_path, dirs_exist_ok=True)
    before = written(tmp_path)
    assert before
    with pytest.raises(UserError, match="imagess"):
        npdraw_dist.fit(strokes(), name="bars", storage=tmp_path, vae={"imagess": 3})
    assert written(tmp_path) == before


def test_images_stay_when_another_process_has_the_run(fitted: Path, tmp_path: Path) -> None:
    shutil.copytree(fitted, tmp_path, dirs_exist_ok=True)
    (tmp_path / "bars/vae/manifest.json").unlink()
    before = written(tmp_path)
    with Store.open(str(tmp_path), "bars").lease(), pytest.raises(LeaseHeld):
        npdraw_dist.fit(strokes(), name="bars", storage=tmp_path, **LONGER)
    assert written(tmp_path) == before


def given_of(images: Any, labels: Any = None) -> tuple[Experiment, Given]:
    """What `fit` gives to the stage `data`."""
    looked = fit_images.look((images, labels), (None, None), "class", None, None, {})
    experiment = resolve(*fit._chosen(looked, None, SMALL, 0))
    return experiment, fit_source.given(images, looked, experiment)


def test_images_of_a_fit_that_was_killed_are_known_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with half of a file; other images are written anew until all are, then they are refused."""
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
    for images, told in others:
        with pytest.raises(UserError, match="are not those that it has read"):
            RunData(experiment, given_of(images, told)[1]).require_same(store)


def test_grey_images_are_coloured_for_a_model_of_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings_of(monkeypatch, GREY, init="emoji").data.shape == (3, 32, 32)


def test_a_model_that_is_trained_on_keeps_the_budget_and_no_mirror(monkeypatch: pytest.MonkeyPatch) -> None:
    anew, trained_on = (settings_of(monkeypatch, COLOUR, **init) for init in ({}, {"init": "emoji"}))
    assert trained_on.train.mirror == anew.train.mirror == 0
    for name in ("images", "plain_images"):
        assert getattr(trained_on.vae, name) == getattr(anew.vae, name)
    assert trained_on.prior.images == anew.prior.images


def test_a_side_among_the_settings_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    among = settings_of(monkeypatch, GREY, data={"image_size": 24})
    given = settings_of(monkeypatch, GREY, image_size=24)
    assert (among.data.image_size, among.bank.size) == (24, given.bank.size)


def settings_of(monkeypatch: pytest.MonkeyPatch, *images: Any, **options: Any) -> Experiment:
    """The run that `fit` would start."""
    return started(monkeypatch, *images, **options)[0]


def started(monkeypatch: pytest.MonkeyPatch, *images: Any, **options: Any) -> tuple[Experiment, Given]:
    """The run that `fit` would start, and its images."""
    found: list[tuple[Experiment, Given]] = []

    def start(experiment: Experiment, *_: Any, given: Given, **__: Any) -> None:
        found.append((experiment, given))
        raise Stopped

    monkeypatch.setattr(fit, "start", start)
    with pytest.raises(Stopped):
        npdraw_dist.fit(*images, **options)
    return found[0]


def rows_of(given: Given, split: Split) -> rows.Rows:
    """The images of a split, as the stage `data` reads them."""
    return rows.Rows.cat([shard.read() for shard in given.open(Store.open("nowhere", "run")).shards(split)])


def test_own_images_for_validation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They alone validate, in the form of the others, with the numbers of their classes."""
    held = np.stack([np.full((16, 16, 3), 40 * n, np.uint8) for n in range(4)])
    labels, valid_labels = ["b" if n % 2 else "a" for n in range(60)], ["b", "b", "a", "b"]
    asked = {"labels": labels, "valid": held, "valid_labels": valid_labels, **SMALL}
    where = {"name": "bars", "storage": str(tmp_path)}
    _, given = started(monkeypatch, strokes(), **asked, **where)
    assert len(rows_of(given, "train")) == 60
    found = rows_of(given, "valid")
    assert found.images.shape == (4, 1, 12, 12)
    assert found.images.mean((1, 2, 3)).tolist() == [0, 40, 80, 120]
    assert found.known_labels().tolist() == [1, 1, 0, 1]
    with pytest.raises(UserError, match="give valid_labels"):
        npdraw_dist.fit(strokes(), labels=labels, valid=held)
    with pytest.raises(UserError, match="give valid too"):
        npdraw_dist.fit(strokes(), labels=labels, valid_labels=valid_labels)
    with pytest.raises(UserError, match="no classes by name"):
        npdraw_dist.fit(strokes(), valid=held, valid_labels=valid_labels)
    with pytest.raises(UserError, match="a class 'c', which no other"):
        npdraw_dist.fit(strokes(), labels=labels, valid=held, valid_labels=["a", "b", "b", "c"])


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
    # A file, and more parts: the given ones come first.
    more = {"bank": str(tmp_path / "bars"), "bank.size": 8}
    experiment = settings_of(monkeypatch, corners(), **{**SMALL, **more})
    assert (experiment.bank.size, experiment.grid.patch, experiment.grid.stride) == (8, 4, 4)
    with pytest.raises(UserError, match=r"bank\.size is 3, take as many or more"):
        npdraw_dist.fit(corners(), **{**SMALL, **more, "bank.size": 3})
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


def test_what_a_callback_raises_ends_the_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a_callback_ends(capsys, name="bars", storage=str(tmp_path), num_workers=0)


def test_a_kind_with_codes_trains_scores_and_samples() -> None:
    sizes = {"width": 8, "depth": 1, "latents": 4, "codes": 6}
    model = npdraw_dist.fit(strokes(), **SMALL, model={"kind": "vqvae"}, baseline=sizes)
    assert isinstance(model, VQVAE)
    assert model.spec.latents == 4
    assert model.sample(3).shape == (3, 1, 12, 12)
    assert model.spec.prior is not None  # the network of section prior
    assert (model.spec.prior.width, model.spec.prior.depth) == (8, 1)


# Flags and keyword arguments of a run that is over in a second.
BUDGET: dict[str, Any] = {
    "prior": {"images": 64},
    "vae": {"images": 64, "plain_images": 0},
    "train": SMALL["train"],
    "eval": SMALL["eval"],
}


def corners(count: int = 60) -> Any:
    """Images of two bars that cross, which bars of one height do not make."""
    images = strokes(count)
    for number, image in enumerate(images):
        image[number % 9 : number % 9 + 2, number % 5 : number % 5 + 6] = 255
    return images


def tuned(fitted: Path, storage: Path, **of_bank: Any) -> tuple[Experiment, Store]:
    """What a run `tuned` on the same images, from the model of `bars`, is made of."""
    data = {"source": "parquet", "path": str(fitted / "bars" / "data"), "test_fraction": 0.0}
    init = {"model": str(fitted / "bars")}
    flags = {"data": data, "init": init, "bank": of_bank, "scale": {"num_workers": 0}, **BUDGET}
    experiment = resolve("digits", None, {**flags, "eval": {**BUDGET["eval"], "split": "valid"}})
    return experiment, Store.open(str(storage), "tuned")


def test_the_network_is_the_model_s(fitted: Path, tmp_path: Path) -> None:
    experiment, _ = tuned(fitted, tmp_path, size=11)
    assert (experiment.bank.size, experiment.grid.patch, experiment.prior.width) == (11, 4, 8)
    assert (experiment.data.image_size, experiment.data.channels) == (12, 1)
    assert (experiment.vae.encoder_width, experiment.vae.relaxed_images) == (8, 0)
    whole = experiment.model_dump(mode="json")
    assert resolve("digits", None, whole) == experiment
    whole["parse"]["steps"] = None  # as the default configuration says it: one for each place
    assert resolve("digits", None, whole).steps == experiment.steps
    with pytest.raises(UserError, match=r"bank\.size adds 5000 parts"):  # before anything is read
        run.require_images(tuned(fitted, tmp_path, size=5008)[0], {"train": 48, "valid": 6}, ["bank"])


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        ({"grid": {"patch": 5, "stride": 5}}, r"grid\.patch 4, not 5"),
        ({"bank": {"size": 7}}, r"bank\.size 8 or more, not 7"),
        ({"data": {"image_size": 16}, "parse": {"steps": 16}}, r"1x12x12, not 1x16x16"),
        ({"model": {"kind": "vae"}}, "model.kind is vae"),
        ({"init": {"sha256": "0" * 64}}, "has other weights"),
        ({"init": {"model": "nowhere/at/all"}}, "nowhere/at/all is no model folder"),
    ],
)
def test_what_does_not_fit_is_told_in_a_line(fitted: Path, flags: dict[str, Any], error: str) -> None:
    asked = {"data": {"source": "parquet", "path": "x"}, "init": {"model": str(fitted / "bars" / "model")}}
    merged = {**asked, **{name: {**asked.get(name, {}), **values} for name, values in flags.items()}}
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
    more, _ = tuned(fitted, tmp_path, size=11)
    first, of_same, *others = (
        [fingerprint_of(of, stage) for stage in ("bank", "parse", "prior", "vae")]
        for of in (experiment, same, other, more)
    )
    assert first == of_same
    assert not any(set(first) & set(found) for found in others)


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
    parts = bank.load_bank(experiment, store)
    assert torch.equal(parts.parts, model.bank_parts)
    weights = vae.start_weights(experiment, parts)
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
    extended: dict[str, Any] = {"bank.size": 12}
    begun: list[Experiment] = []
    real = fit.start

    def start(experiment: Experiment, *arguments: Any, **options: Any) -> Any:
        begun.append(experiment)
        if len(begun) == 2:
            raise Stopped
        return real(experiment, *arguments, **options)

    monkeypatch.setattr(fit, "start", start)
    found = npdraw_dist.fit(corners(), init=model, **BUDGET, **extended)
    assert isinstance(found, NPDraw)
    assert torch.equal(found.bank_parts[:8], model.bank_parts)
    assert found.sample(2).shape == (2, 1, 12, 12)
    assert found.spec.prior == model.spec.prior
    with pytest.raises(Stopped):
        npdraw_dist.fit(corners(), init=str(fitted / "bars"), **BUDGET, **extended)
    assert begun[0].init.sha256 == begun[1].init.sha256
    with pytest.raises(UserError, match="init is a Linear"):
        npdraw_dist.fit(corners(), init=torch.nn.Linear(1, 1), **BUDGET)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"is for grey images"):
        npdraw_dist.fit(np.zeros((9, 12, 12, 3), np.uint8), init=model, **BUDGET)


# Of what a run's settings make.
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


def test_what_does_not_fit_a_baseline_is_told(tmp_path: Path) -> None:
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


def test_budgets_take_about_the_time_that_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """By steps whose seconds are known: the stages fill the time that is not of other work."""
    settings = merge(suited(pictures_of(strokes(60)))[1], {"data": {"source": "parquet", "path": "x"}})
    experiment = resolve("digits", None, settings)
    prior_s, relaxed_s, hard_s = 1.0, 4.0, 2.0
    step = probe.timed_step

    def timed_step(run: Any, batch: Batch, micro_batch: int, hard: bool = False) -> float:
        assert step(run, batch, micro_batch, hard) > 0
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
    fit_folder.main(command)
    monkeypatch.setattr(fit, "budgets", lambda *_: {"vae": {"images": 96}})
    fit_folder.main(command)
    told = capsys.readouterr()
    assert "all done" in told.out
    assert "goes on with the budgets that it began with" in told.out + told.err
    run = Store.open(str(tmp_path / "runs"), "mine")
    assert run.config().vae.images == 80
    assert npdraw_dist.load(tmp_path / "runs" / "mine").sample(2).shape == (2, 1, 12, 12)
    with pytest.raises(SystemExit) as ended:
        fit_folder.main(["-h"])
    assert ended.value.code == 0
    with pytest.raises(UserError, match="among the pictures"):
        fit_folder.main([str(tmp_path), "--storage", str(tmp_path / "runs")])
