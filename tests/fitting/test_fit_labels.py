"""`npdraw_dist.fit` of folders that say what a picture shows: by folder, by file name or in a table."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import npdraw_dist
from npdraw_dist import sample
from npdraw_dist.fitting.fit_images import look
from npdraw_dist.nn.npdraw import NPDraw
from npdraw_dist.serve.engine import Engine
from npdraw_dist.system.errors import UserError
from tests.helpers.tiny_fit import SMALL, settings_of, started, strokes


def write(root: Path, *names: str) -> Path:
    """Different pictures with these paths below `root`."""
    for name, image in zip(names, strokes(63), strict=False):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(root / name)
    return root


def numbered(*of_each: str, count: int = 4) -> list[str]:
    return [f"{name}{number}.png" for name in of_each for number in range(count)]


def table(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8-sig")
    return path


def values(folder: Path, labels: Any, column: str, **options: Any) -> dict[str, Any]:
    """Picture -> its label or words, as the stage `data` reads them."""
    looked = look((folder, labels), (None, None), options, by_folders=True)
    assert looked.folder is not None
    found: dict[str, Any] = {}
    for files in looked.folder.splits.values():
        for item in files:
            known = item.label >= 0
            found[item.path] = (
                item.text if column == "words" else looked.classes[item.label] if known else None
            )
    return found


def test_folders_are_classes_if_two_have_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write(tmp_path / "p", *numbered("b/", "a/deep/"), *numbered("few/", count=2), "alone.png")
    experiment, source = started(monkeypatch, root, storage=tmp_path)
    assert (experiment.prior.condition, source.classes) == ("class", ("a", "b"))
    line = " ".join(capsys.readouterr().out.split())
    assert "2 classes from the folders (a 4, b 4)" in line
    assert "left out, with fewer than 3 pictures: 1 (few 2); pictures without any: 1" in line
    found = values(root, None, "label")
    assert (found["a/deep/0.png"], found["b/3.png"]) == ("a", "b")
    assert found["few/0.png"] is found["alone.png"] is None
    for labels in ("none", None):
        flat = write(tmp_path / "flat", *numbered("a/"), "b/0.png") if labels is None else root
        assert settings_of(monkeypatch, flat, labels=labels, storage=tmp_path).prior.condition == "none"


def test_file_names_are_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write(tmp_path / "p", *numbered("a/Red_car-", "b/red bus", "car."), "b/lonely01.png")
    assert settings_of(monkeypatch, root, labels="names", storage=tmp_path).prior.condition == "words"
    found = values(root, "names", "words")
    assert [found[name] for name in ("a/Red_car-0.png", "b/red bus3.png", "car.2.png")] == [
        "red car",
        "red bus",
        "car",
    ]
    assert found["b/lonely01.png"] == ""


def test_a_table_has_classes_or_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write(tmp_path / "p", *numbered("x/", "y/", ""))
    rows = [f"{name},{'odd' if n % 2 else 'even'}" for n, name in enumerate(numbered("x/", "y/"))]
    classes = table(tmp_path / "c.csv", "file,label", *rows, "./0.png,odd", "1.png,")
    experiment, source = started(monkeypatch, root, labels=classes, storage=tmp_path)
    assert (experiment.prior.condition, source.classes) == ("class", ("even", "odd"))
    found = values(root, classes, "label")
    assert [found[name] for name in ("x/0.png", "y/1.png", "0.png")] == ["even", "odd", "odd"]
    assert found["1.png"] is found["2.png"] is None
    words = table(
        tmp_path / "w.csv",
        "caption,file_name",
        *(f'"Tall, {n}",x/{n}.png' for n in range(4)),
        '"tall bar",0.png',
        *(f"bar,y/{n}.png" for n in range(4)),
    )
    assert settings_of(monkeypatch, root, labels=str(words), storage=tmp_path).prior.condition == "words"
    assert values(root, words, "words") | {"x/0.png": "tall", "0.png": "tall bar"} == values(
        root, words, "words"
    )


def test_other_labels_are_other_images(tmp_path: Path) -> None:
    """A run refuses images whose labels changed, since the digest of what is read does."""
    root = write(tmp_path / "p", *numbered("x-", "y-"))
    lines = [f"{name},{name[0]}" for name in numbered("x-", "y-")]
    stamps = set()
    for order in (1, -1):
        names = [
            line.split(",")[0] + "," + other.split(",")[1]
            for line, other in zip(lines, lines[::order], strict=True)
        ]
        looked = look((root, table(tmp_path / "t.csv", "file,label", *names)), (None, None), {})
        assert looked.folder is not None
        stamps.add(looked.folder.stamp)
    assert len(stamps) == 2


def test_validation_pictures_have_labels_of_the_same_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write(tmp_path / "p", *numbered("x/red", "y/blue"), *numbered("few/", count=1))
    valid = write(tmp_path / "v", "y/blue.png", "few/blue.png")

    def seen(**options: Any) -> Any:
        looked = look(
            (root, options.pop("labels", None)), (valid, options.pop("valid_labels", None)), {}, True
        )
        assert looked.validation is not None
        return looked.validation

    assert seen().known_labels().tolist() == [-1, 1]
    assert seen(labels="names").words == ["blue", "blue"]
    csv = table(tmp_path / "c.csv", "file,label", *(f"{n},{n[0]}" for n in numbered("x/red", "y/blue")))
    of_valid = table(tmp_path / "v.csv", "file,label", "few/blue.png,x")
    assert seen(labels=csv, valid_labels=of_valid).known_labels().tolist() == [0, -1]
    with pytest.raises(UserError, match="no picture"):
        seen(labels=csv)
    write(valid, "z/0.png")
    with pytest.raises(UserError, match="a class 'z', which no other image has"):
        seen()


@pytest.mark.parametrize("labels", ["folders", "names", "table"])
def test_what_was_learned_can_be_asked_for(
    tmp_path: Path, labels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the command `sample` and of the studio; what is not known gets a line with what is."""
    root = write(tmp_path / "p", *numbered("cat/cat", "dog/dog", "emu/emu", count=8))
    rows = [f"{name},{name[:3]}" for name in numbered("cat/cat", "dog/dog", "emu/emu", count=8)]
    source = str(table(tmp_path / "t.csv", "file,label", *rows)) if labels == "table" else labels
    npdraw_dist.fit(root, name="mine", storage=tmp_path, labels=source, **SMALL)
    run = str(tmp_path / "mine")
    sample.main(["--model", run, "--n", "2", "--condition", "dog", "--out", str(tmp_path / "out")])
    assert np.load(tmp_path / "out/samples.npz")["images"].shape[0] == 2
    model = npdraw_dist.load(run)
    assert isinstance(model, NPDraw)
    known = Engine(model).describe().vocabulary
    assert sorted(known) == ["cat", "dog", "emu"]
    what = "word" if labels == "names" else "class"
    with pytest.raises(UserError, match=f"does not know the {what} 'cow'; it knows {', '.join(known)}"):
        sample.main(["--model", run, "--condition", "cow", "--out", str(tmp_path / "out")])
