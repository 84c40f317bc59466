"""The command `edit`: its files, its inputs, and its one-line errors."""

from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from pyarrow import fs

from npdraw_dist import sample
from npdraw_dist.core.grid import Grid
from npdraw_dist.core.parts import PartSequence
from npdraw_dist.data.rows import Rows
from npdraw_dist.edit import __main__ as edit
from npdraw_dist.edit import pictures
from npdraw_dist.nn.drawings import Drawings
from npdraw_dist.nn.editing import parse_move, parse_region
from npdraw_dist.nn.npdraw import NPDraw
from npdraw_dist.pipeline.inputs import image_with_id
from npdraw_dist.pipeline.trained_models import load_npdraw
from tests.helpers.rows import Parsed, write_run
from tests.helpers.runs import Refused
from tests.helpers.studio_models import GREY, WITH_U, as_bytes, pixels, png_of, save_model


@pytest.fixture(scope="module")
def grey(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("grey"), GREY)


@pytest.fixture(scope="module")
def with_u(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in colour with a canvas of half the resolution and a Gaussian latent that matters."""
    return save_model(tmp_path_factory.mktemp("colour"), WITH_U["vector"])


def edited(model: Path, out: Path, *flags: str) -> PartSequence:
    """The drawing that `edit` saves."""
    edit.main(["--model", str(model), "--out", str(out), *flags])
    return PartSequence.load(out / "z.safetensors")


def shown(out: Path) -> NDArray[np.uint8]:
    return pixels((out / "edited.png").read_bytes())


def drawn(z: PartSequence) -> list[tuple[int, int]]:
    return list(zip(z.where[z.whether].tolist(), z.what[z.whether].tolist(), strict=True))


def completed(model: NPDraw, a: Drawings, b: Drawings) -> Drawings:
    """The first of three completions."""
    keep = ~parse_region("0:2,:;2:3,0:1", model.grid)
    return model.complete(model.compose(a, b, "4:5,:").repeated(3), keep, seed=5)[:1]


@pytest.mark.parametrize(
    ("flags", "made"),
    [
        ("--b sample:2 --region 0:2,1:3", lambda model, a, b: model.compose(a, b, "0:2,1:3")),
        ("--remove :,0:3", lambda model, a, b: model.edit(a, remove=":,0:3")),
        ("--move 1,2:4,3", lambda model, a, b: model.edit(a, move={(1, 2): (4, 3)})),
        ("--b sample:2 --region 4:5,: --complete 0:2,:;2:3,0:1 --seed 5 --n 3", completed),
        (
            "--keep 2:4,: --temperature 0.7",
            lambda model, a, b: model.complete(a, "2:4,:", temperature=0.7, seed=0),
        ),
    ],
)
def test_edits_are_those_of_python(flags: str, made: Any, grey: Path, with_u: Path, tmp_path: Path) -> None:
    for folder, out in ((grey, tmp_path / "grey"), (with_u, tmp_path / "with_u")):
        model = load_npdraw(str(folder))
        expected = made(model, *(model.draw(1, seed=seed) for seed in (1, 2)))
        assert drawn(edited(folder, out, "--a", "sample:1", *flags.split())) == drawn(expected.z)
        np.testing.assert_array_equal(shown(out), as_bytes(expected.images[0]))
        completes = "--complete" in flags or "--keep" in flags
        names = ["completion.png"] * completes + ["edit.png", "edited.png", "z.safetensors"]
        assert sorted(file.name for file in out.iterdir()) == names


def test_an_edited_drawing_is_edited_again(grey: Path, tmp_path: Path) -> None:
    left = drawn(edited(grey, tmp_path, "--a", "sample:1", "--remove", ":,0:5"))
    assert all(place % 6 == 5 for place, _ in left)
    place, part = left[0]
    flags = ["--a", str(tmp_path / "z.safetensors"), "--move", f"{place // 6},5:2,0", "--interpolate"]
    moved = drawn(edited(grey, tmp_path, *flags))
    assert (12, part) in moved
    assert len(moved) == len(left)
    with Image.open(tmp_path / "interpolation.gif") as gif:
        assert getattr(gif, "n_frames", 1) == 3  # before, and two places that changed


def test_images_of_a_file_and_of_the_run(grey: Path, tmp_path: Path, refused: Refused) -> None:
    """Training and validation images are found by their ids, test images are not."""
    model = load_npdraw(str(grey))
    images = np.random.default_rng(0).integers(0, 2, (5, 1, 28, 28), dtype=np.uint8) * 255
    encoded = [drawn(model.encode(model.as_input(torch.tensor(image[None])))) for image in images]
    file = tmp_path / "ink.png"
    file.write_bytes(png_of(images[0, 0]))
    nothing = ["--region", "0:0,0:0", "--b", "test:49", "--a"]
    assert drawn(edited(grey, tmp_path, *nothing, str(file))) == encoded[0]
    file.write_bytes(png_of(255 - images[0, 0]))
    assert drawn(edited(grey, tmp_path, *nothing, str(file), "--invert")) == encoded[0]
    ids = [f"picture {number}" for number in range(5)]
    train, valid = (Parsed(Rows(ids[rows], images[rows])) for rows in (slice(0, 3), slice(3, 5)))
    test = Parsed(Rows([str(number) for number in range(50)], np.zeros((50, 1, 28, 28), np.uint8)))
    write_run(fs.LocalFileSystem(), str(grey.parent), {"train": [train], "valid": [valid], "test": [test]})
    for number in range(5):
        found = image_with_id(str(grey), model.spec, f"picture {number}")
        np.testing.assert_array_equal(found.numpy(), images[number : number + 1])
    assert drawn(edited(grey, tmp_path, *nothing, "id:picture 4")) == encoded[4]
    flags = ["--model", str(grey), "--out", str(tmp_path), *nothing, "id:picture 5"]
    assert "picture 5" in refused(edit.main, *flags)


def test_the_appearance_of_an_image_stays_and_a_saved_drawing_has_none(with_u: Path, tmp_path: Path) -> None:
    model, file = load_npdraw(str(with_u)), tmp_path / "a.png"
    picture = np.random.default_rng(0).integers(0, 256, model.spec.image_shape, dtype=np.uint8)
    file.write_bytes(png_of(picture.transpose(1, 2, 0)))
    x = torch.tensor(picture)[None] / 255
    found = model.infer_appearance(x, model.render(model.encode(x)))
    assert found is not None
    z = edited(with_u, tmp_path, "--a", str(file), "--b", "sample:2", "--region", "0:2,1:4;4:5,:")
    canvas = model.render(z)
    np.testing.assert_array_equal(shown(tmp_path), as_bytes(model.decode(canvas, found.q.mean)[0]))
    assert (shown(tmp_path) != as_bytes(model.decode(canvas)[0])).any()
    edited(with_u, tmp_path, "--a", str(tmp_path / "z.safetensors"), "--remove", "0:0,0:0", "--interpolate")
    np.testing.assert_array_equal(shown(tmp_path), as_bytes(model.decode(canvas)[0]))


EDITED = "2:4,1:3;4:5,:"  # a region
POSTERS = f"""
edits:
  - {{a: "sample:1", b: "sample:2", region: "0:2,:"}}
  - {{a: "sample:2", b: "sample:1", region: "{EDITED}"}}
completions:
  - {{a: "sample:3", keep: "0:2,:"}}
  - {{a: "sample:3", complete: "2:,:"}}
n: 3
seed: 4
"""


def test_posters_show_single_edits(with_u: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edits, completions = (Mock(wraps=getattr(pictures, name)) for name in ("save_edits", "save_completions"))
    monkeypatch.setattr(pictures, "save_edits", edits)
    monkeypatch.setattr(pictures, "save_completions", completions)
    (tmp_path / "list.yaml").write_text(POSTERS)
    posters, out = tmp_path / "posters", tmp_path / "out"
    edit.main(["--model", str(with_u), "--out", str(posters), "--posters", str(tmp_path / "list.yaml")])
    assert sorted(f.name for f in posters.iterdir()) == ["completions.png", "edits.png"]
    rows = edits.call_args.args[1]
    assert len(rows) == 2
    edited(with_u, out, "--a", "sample:2", "--b", "sample:1", "--region", EDITED)
    np.testing.assert_array_equal(shown(out), as_bytes(rows[1].images[2]))
    model = load_npdraw(str(with_u))
    a, b, begun = (model.draw(1, seed=seed) for seed in (2, 1, 3))
    assert torch.equal(rows[1].canvases, torch.cat([a.canvas, b.canvas, model.compose(a, b, EDITED).canvas]))
    assert torch.equal(rows[1].images[:2], torch.cat([a.images, b.images]))
    where, what = zip(*drawn(a.z), strict=True)
    assert rows[1].where.tolist() == [*where]
    assert torch.equal(rows[1].parts, model.bank_parts[[*what]])
    first, second = completions.call_args.args[1]
    assert len(first.images) == len(second.images) == 3
    assert torch.equal(first.keep, second.keep)
    assert torch.equal(first.original, begun.images[0])
    assert torch.equal(first.canvas, model.edit(begun, remove="2:,:").canvas[0])
    edited(with_u, out, "--a", "sample:3", "--keep", "0:2,:", "--n", "3", "--seed", "4")
    np.testing.assert_array_equal(shown(out), as_bytes(first.images[0]))
    assert not torch.equal(first.images, second.images)  # each row has a seed of its own


# More mistakes of the command are in tests/test_mistakes.py.
@pytest.mark.parametrize(
    ("flags", "posters", "words"),
    [
        ("--a sample:1 --n 2 --remove :,:", "", "--n"),
        ("--a sample:1 --complete :,: --keep :,:", "", "--complete, the places to redraw, or --keep"),
        ("--a sample:1 --keep 0:2,0:2;", "", "region ''"),
        ("--a sample:1 --posters list.yaml", "n: 2", "--posters"),
        ("--posters list.yaml", "n: 2", "`edits`"),
        ("--posters list.yaml", "edits: [{a: 'sample:1', b: 'sample:2'}]", "edits.0.region"),
        ("--posters list.yaml", "completions: [{a: 'sample:1'}]", "`complete` or `keep`"),
        ("--posters list.yaml", "completions: [{a: 'sample:1', keep: '0:9,:'}]", "'0:9,:'"),
        ("--posters list.yaml", "edit: []", "unknown key edit"),
    ],
)
def test_mistakes_of_completions_and_lists(
    flags: str, posters: str, words: str, grey: Path, tmp_path: Path, refused: Refused, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.yaml").write_text(posters)
    assert words in refused(edit.main, "--model", str(grey), "--out", "out", *flags.split())
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_regions() -> None:
    grid = Grid(28, 28, 5, 5)
    assert not parse_region(None, grid).any()
    assert parse_region("0:1,0:2; 5:6,5:; 3:3,:", grid).nonzero()[:, 0].tolist() == [0, 1, 35]
    assert parse_move("1,2:5,0", grid) == (8, 30)


def test_without_a_model_the_last_run_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "runs" / "mine", GREY)
    sample.main(["--n", "2", "--out", "out"])
    assert "runs/mine" in capsys.readouterr().out
    assert (tmp_path / "out" / "samples.png").exists()
