"""The command `edit`: what it writes, what it takes, and the mistakes it tells in one line."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from npdraw_dist import sample
from npdraw_dist.core import editing
from npdraw_dist.core.grid import Grid
from npdraw_dist.core.parts import PartSequence
from npdraw_dist.edit import __main__ as edit
from npdraw_dist.edit.apply import parse_move, parse_region
from npdraw_dist.pipeline.models import load_npdraw
from npdraw_dist.serve import __main__ as serve
from tests.helpers.editor_models import COLOUR, GREY, as_bytes, pixels, png_of, save_model
from tests.helpers.runs import Refused


@pytest.fixture(scope="module")
def grey(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("grey"), GREY)


@pytest.fixture(scope="module")
def colour(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("colour"), COLOUR)


def drawn(z: PartSequence) -> list[tuple[int, int]]:
    return list(zip(z.where[z.whether].tolist(), z.what[z.whether].tolist(), strict=True))


@pytest.mark.parametrize("kind", ["grey", "colour"])
def test_a_region_of_b_on_a(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(kind)
    out = tmp_path / "out"
    edit.main(
        [
            "--model",
            str(folder),
            "--a",
            "sample:1",
            "--b",
            "sample:2",
            "--region",
            "0:2,1:3",
            "--out",
            str(out),
        ]
    )
    assert sorted(f.name for f in out.iterdir()) == ["edit.png", "edited.png", "z.safetensors"]
    model = load_npdraw(str(folder))
    z_a, z_b = (model.sample_prior(1, torch.Generator().manual_seed(seed)) for seed in (1, 2))
    mask = parse_region("0:2,1:3", model.grid)
    z = PartSequence.load(out / "z.safetensors")
    assert drawn(z) == drawn(editing.compose(z_a, z_b, mask, model.spec.order))
    np.testing.assert_array_equal(
        pixels((out / "edited.png").read_bytes()), as_bytes(model.decode(model.render(z))[0])
    )
    with Image.open(out / "edit.png") as page:
        assert page.width > 3 * 200
        assert page.height > 2 * 200


def test_an_edited_drawing_is_edited_again(grey: Path, tmp_path: Path) -> None:
    flags = ["--model", str(grey), "--out", str(tmp_path)]
    edit.main([*flags, "--a", "sample:1", "--remove", ":,0:5"])
    left = drawn(PartSequence.load(tmp_path / "z.safetensors"))
    assert left
    assert all(place % 6 == 5 for place, _ in left)
    place, part = left[0]
    edit.main(
        [*flags, "--a", str(tmp_path / "z.safetensors"), "--move", f"{place // 6},5:2,0", "--interpolate"]
    )
    moved = drawn(PartSequence.load(tmp_path / "z.safetensors"))
    assert (12, part) in moved
    assert len(moved) == len(left)
    with Image.open(tmp_path / "interpolation.gif") as gif:
        assert getattr(gif, "n_frames", 1) == 3  # before, and two places that changed


def test_images_of_a_file_and_of_the_test_set(grey: Path, tmp_path: Path) -> None:
    file = tmp_path / "ink.png"
    ink = np.random.default_rng(0).integers(0, 2, (28, 28), dtype=np.uint8) * 255
    file.write_bytes(png_of(ink))
    flags = ["--model", str(grey), "--out", str(tmp_path), "--region", "0:0,0:0"]
    edit.main([*flags, "--a", str(file), "--b", "test:49"])
    model = load_npdraw(str(grey))
    z = model.encode(torch.tensor(ink)[None, None] / 255)
    assert drawn(PartSequence.load(tmp_path / "z.safetensors")) == drawn(z)
    file.write_bytes(png_of(255 - ink))
    edit.main([*flags, "--a", str(file), "--b", "test:0", "--invert"])
    assert drawn(PartSequence.load(tmp_path / "z.safetensors")) == drawn(z)


def test_regions() -> None:
    grid = Grid(28, 28, 5, 5)
    assert parse_region("0:6,0:6", grid).all()
    assert parse_region(":,:", grid).all()
    assert not parse_region("3:3,0:6", grid).any()
    assert parse_region("1:3, 2:4", grid).nonzero()[:, 0].tolist() == [8, 9, 14, 15]
    assert parse_move("1,2:5,0", grid) == (8, 30)


def test_without_a_model_the_last_run_is_taken_or_the_way_to_one_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], refused: Refused
) -> None:
    monkeypatch.chdir(tmp_path)
    for main, flags in ((sample.main, ["--out", "out"]), (serve.main, [])):
        line = refused(main, *flags)
        assert "2 minutes" in line
        assert "python -m npdraw_dist.train" in line
    save_model(tmp_path / "runs" / "mine", GREY)
    sample.main(["--n", "2", "--out", "out"])
    assert "taking the last run, runs/mine/model" in capsys.readouterr().out
    assert (tmp_path / "out" / "samples.png").exists()
