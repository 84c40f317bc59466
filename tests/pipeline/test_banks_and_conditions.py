"""A run with a prior conditioned on the class that takes parts by their pixels, also of another bank."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from npdraw_dist import NPDraw, PartBank, sample
from npdraw_dist.bank import __main__ as bank_command
from npdraw_dist.config.load import merge, resolve
from npdraw_dist.evaluate import __main__ as evaluate
from npdraw_dist.pipeline import run
from npdraw_dist.pipeline.run import start
from npdraw_dist.pipeline.store import Store
from npdraw_dist.pipeline.trained_models import read_bank
from npdraw_dist.system.errors import UserError
from tests.helpers.runs import Refused
from tests.helpers.tiny_fit import SMALL, strokes
from tests.helpers.tiny_models import tiny_model, tiny_spec

CONDITIONED: dict[str, Any] = {
    "data": {"fraction": 0.2},
    "prior": {"condition": "class", "table": "pixels"},
    "scale": {"num_workers": 0},
    "eval": {"split": "valid", "guidance": 3.0},
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    experiment = resolve("digits", None, merge(SMALL, CONDITIONED))
    return start(experiment, str(tmp_path_factory.mktemp("runs")), "conditioned", experiment.stage_names)


@pytest.fixture(scope="module")
def model(store: Store) -> NPDraw:
    return NPDraw.from_pretrained(store.path("model"))


def test_the_classes_of_the_data_reach_the_model(store: Store, model: NPDraw) -> None:
    assert model.vocabulary.known == [str(digit) for digit in range(10)]
    assert store.metrics()["valid/nll_iwae_given"] > 0
    found = store.metrics()
    assert found["valid/nll_iwae_given"] != found["valid/nll_iwae"]
    gain = found["valid/nll_iwae"] - found["valid/nll_iwae_given"]
    assert found["valid/condition_gain"] == pytest.approx(gain)
    assert found["valid/condition_gain_se"] < found["valid/nll_iwae_se"]  # paired
    batch = store.parses("train", store.with_vocabulary(store.config())).in_id_order()
    assert set(batch.condition.flatten().tolist()) == set(range(1, 11))
    again = start(store.config(), str(Path(store.root).parent), "conditioned", store.config().stage_names)
    assert again.metrics() == store.metrics()  # nothing is done anew: the vocabulary is no setting


def test_commands_make_a_bank_and_draw_with_it(store: Store, model: NPDraw, tmp_path: Path) -> None:
    sizes = ["--bank.size", "12", "--grid.patch", "4", "--grid.stride", "4", "--data.fraction", "0.1"]
    bank_command.main([*sizes, "--scale.num_workers", "0", "--out", str(tmp_path / "other")])
    bank = read_bank(str(tmp_path / "other"))
    assert bank.parts.shape == (12, 1, 4, 4)
    with pytest.raises(UserError, match=r"another config \(seed: 0 -> 1\); take another --out"):
        bank_command.main(
            [*sizes, "--seed", "1", "--scale.num_workers", "0", "--out", str(tmp_path / "other")]
        )
    drawn = ["--model", store.path("model"), "--n", "6", "--seed", "3", "--out", str(tmp_path / "drawn")]
    drawn += ["--bank", str(tmp_path / "other"), "--condition", "7"]
    for flags, guidance in ([], 3.0), (["--guidance", "2"], 2.0):  # 3 is the run's eval.guidance
        sample.main([*drawn, *flags])
        found = np.load(tmp_path / "drawn" / "samples.npz")
        expected = model.with_bank(bank).draw(6, seed=3, condition=7, guidance=guidance)
        assert {name: found[name].tolist() for name in ("whether", "where", "what")} == {
            name: value.tolist() for name, value in vars(expected.z).items()
        }
    assert isinstance(PartBank.load(tmp_path / "other" / "bank" / "bank.safetensors"), PartBank)


@pytest.mark.parametrize(
    ("shift", "least", "most"), [(0, 0.8, 1.0), pytest.param(1, 0.0, 0.2, marks=pytest.mark.slow)]
)
def test_drawings_that_are_read_as_requested_are_counted(
    shift: int, least: float, most: float, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model draws real images of the requested class, or of the next one."""
    batch = store.parses("valid", store.with_vocabulary(store.config())).in_id_order()

    def given(_: NPDraw, condition: str, guidance: float) -> SimpleNamespace:
        of_class = batch.images[batch.condition[:, 0] == 1 + (int(condition) + shift) % 10]
        images = (of_class[:3] > 127).float()
        drawn = SimpleNamespace(images=images, pixels=lambda generator: images)
        return SimpleNamespace(draw=lambda *_, **__: drawn)

    monkeypatch.setattr(NPDraw, "given", given)
    evaluate.main(["--check-conditions", "--model", store.path("model"), "--n", "3", "--out", str(tmp_path)])
    found = json.loads((tmp_path / "conditions.json").read_text())
    assert found["guidance"] == 3.0
    assert found["questions"] == {"seen": found["questions"]["seen"], "held_out": []}
    assert sorted(found["questions"]["seen"]) == [str(digit) for digit in range(10)]
    assert least <= found["attributes"]["class"]["seen_right"] <= most
    assert (tmp_path / "conditions.png").exists()


def test_the_vocabulary_is_written(store: Store) -> None:
    written = json.loads((Path(store.root) / "data" / "vocabulary.json").read_text())
    assert written == {"classes": [str(digit) for digit in range(10)], "words": []}


def test_a_class_that_only_test_images_have_is_none(tmp_path: Path) -> None:
    """So the numbers of the test split can be added to a run that was trained without it."""
    images = pa.FixedShapeTensorArray.from_numpy_ndarray(strokes(48)[:, None])
    labels = [n % 3 for n in range(40)] + [9] * 8
    split = ["train"] * 32 + ["valid"] * 8 + ["test"] * 8
    table = pa.table({"image": images, "id": [f"{n}" for n in range(48)], "label": labels, "split": split})
    pq.write_table(table, tmp_path / "a.parquet")
    data = {"source": "parquet", "path": str(tmp_path / "a.parquet"), "image_size": 12, "channels": 1}
    before = resolve("digits", None, merge(SMALL, CONDITIONED, {"data": {**data, "fraction": 1.0}}))
    after = before.model_copy(update={"eval": before.eval.model_copy(update={"split": "test"})})
    for experiment in (before, after):
        found = start(experiment, str(tmp_path), "conditioned", experiment.stage_names)
        assert found.read_json("data", "vocabulary.json")["classes"] == ["0", "1", "2"]
    assert found.metrics()["test/nll_iwae_given"] == pytest.approx(found.metrics()["test/nll_iwae"])
    assert found.parses("test", found.with_vocabulary(after)).in_id_order().condition.unique().tolist() == [0]


@pytest.mark.parametrize(
    ("out", "where"), [("/banks", ("/", "banks")), ("banks", (".", "banks")), ("a/b/", ("a", "b"))]
)
def test_a_bank_is_written_to_out(out: str, where: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    found = list[tuple[str, str]]()
    monkeypatch.setattr(run, "start", lambda _, storage, name, __: found.append((storage, name)))
    bank_command.main(["--out", out])
    assert found == [where]


def test_an_attribute_without_alternatives_is_refused(tmp_path: Path, refused: Refused) -> None:
    spec = tiny_spec("aligned")
    prior = spec.prior.model_copy(update={"condition": "words", "vocabulary": ("red",)})
    tiny_model(spec.model_copy(update={"prior": prior})).save_pretrained(tmp_path / "model")
    (tmp_path / "attributes.yaml").write_text("skin: []")
    flags = ["--check-conditions", "--model", str(tmp_path / "model")]
    flags += ["--attributes", str(tmp_path / "attributes.yaml")]
    assert "list of its alternatives" in refused(evaluate.main, *flags, "--out", str(tmp_path / "out"))
    assert "is a URI" in refused(evaluate.main, *flags, "--out", "s3://bucket/x")
    assert not (tmp_path / "out").exists()
