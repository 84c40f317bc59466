"""The command `edit`: what it writes, what it takes, and the mistakes it tells in one line."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from pyarrow import fs

from npdraw_dist import sample
from npdraw_dist.core import editing
from npdraw_dist.core.editing import parse_move, parse_region
from npdraw_dist.core.grid import Grid
from npdraw_dist.core.parts import PartSequence
from npdraw_dist.core.storage import write_bytes
from npdraw_dist.data.parses import to_parquet
from npdraw_dist.data.rows import Rows
from npdraw_dist.edit import __main__ as edit
from npdraw_dist.edit import pictures
from npdraw_dist.nn.npdraw import NPDraw
from npdraw_dist.pipeline.inputs import image_with_id
from npdraw_dist.pipeline.models import load_npdraw
from tests.helpers.rows import list_parses
from tests.helpers.runs import Refused
from tests.helpers.studio_models import COLOUR, GREY, WITH_U, as_bytes, pixels, png_of, save_model


@pytest.fixture(scope="module")
def grey(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("grey"), GREY)


@pytest.fixture(scope="module")
def colour(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("colour"), COLOUR)


@pytest.fixture(scope="module")
def with_appearance(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Colour, half the resolution, and a Gaussian latent that matters."""
    return save_model(tmp_path_factory.mktemp("appearance"), WITH_U["vector"])


def edited(model: Path, out: Path, *flags: str) -> PartSequence:
    """What `edit` saves."""
    edit.main(["--model", str(model), "--out", str(out), *flags])
    return PartSequence.load(out / "z.safetensors")


def shown(out: Path) -> NDArray[np.uint8]:
    return pixels((out / "edited.png").read_bytes())


def drawn(z: PartSequence) -> list[tuple[int, int]]:
    return list(zip(z.where[z.whether].tolist(), z.what[z.whether].tolist(), strict=True))


def sampled(model: NPDraw, seed: int) -> PartSequence:
    return model.sample_prior(1, torch.Generator().manual_seed(seed))


def test_a_region_of_b_on_a(grey: Path, tmp_path: Path) -> None:
    z = edited(grey, tmp_path, "--a", "sample:1", "--b", "sample:2", "--region", "0:2,1:3")
    assert sorted(f.name for f in tmp_path.iterdir()) == ["edit.png", "edited.png", "z.safetensors"]
    model = load_npdraw(str(grey))
    mask = parse_region("0:2,1:3", model.grid)
    expected = editing.compose(sampled(model, 1), sampled(model, 2), mask, model.spec.order)
    assert drawn(z) == drawn(expected)
    np.testing.assert_array_equal(shown(tmp_path), as_bytes(model.decode(model.render(z))[0]))
    with Image.open(tmp_path / "edit.png") as page:
        assert page.width > 3 * 200
        assert page.height > 2 * 200


def test_an_edited_drawing_is_edited_again(grey: Path, tmp_path: Path) -> None:
    left = drawn(edited(grey, tmp_path, "--a", "sample:1", "--remove", ":,0:5"))
    assert left
    assert all(place % 6 == 5 for place, _ in left)
    place, part = left[0]
    flags = ["--a", str(tmp_path / "z.safetensors"), "--move", f"{place // 6},5:2,0", "--interpolate"]
    moved = drawn(edited(grey, tmp_path, *flags))
    assert (12, part) in moved
    assert len(moved) == len(left)
    with Image.open(tmp_path / "interpolation.gif") as gif:
        assert getattr(gif, "n_frames", 1) == 3  # before, and two places that changed


def test_images_of_a_file_and_of_the_test_set(grey: Path, tmp_path: Path) -> None:
    file = tmp_path / "ink.png"
    ink = np.random.default_rng(0).integers(0, 2, (28, 28), dtype=np.uint8) * 255
    file.write_bytes(png_of(ink))
    model = load_npdraw(str(grey))
    expected = drawn(model.encode(torch.tensor(ink)[None, None] / 255))
    flags = ["--a", str(file), "--region", "0:0,0:0", "--b"]
    assert drawn(edited(grey, tmp_path, *flags, "test:49")) == expected
    file.write_bytes(png_of(255 - ink))
    assert drawn(edited(grey, tmp_path, *flags, "test:0", "--invert")) == expected


def test_images_by_id(grey: Path, tmp_path: Path, refused: Refused) -> None:
    """Training and validation images of the run have ids; no test image is found by one."""
    images = np.random.default_rng(1).integers(0, 256, (5, 1, 28, 28), dtype=np.uint8)
    parses = grey.parent / "parses"
    for split, rows in (("train", slice(0, 3)), ("valid", slice(3, 5))):
        content = to_parquet(Rows([f"picture {number}" for number in range(5)][rows], images[rows]))
        write_bytes(fs.LocalFileSystem(), str(parses / split / f"{split}-00009.parquet"), content)
    list_parses(fs.LocalFileSystem(), str(parses))
    model = load_npdraw(str(grey))
    for number in range(5):
        found = image_with_id(str(grey), model.spec, f"picture {number}")
        np.testing.assert_array_equal(found.numpy(), images[number : number + 1])
    z = edited(grey, tmp_path, "--a", "id:picture 4", "--remove", "0:0,0:0")
    assert drawn(z) == drawn(model.encode(model.as_input(torch.tensor(images[4:]))))
    flags = ["--model", str(grey), "--remove", "0:0,0:0", "--out", str(tmp_path), "--a", "id:picture 5"]
    assert "picture 5" in refused(edit.main, *flags)


def test_the_prior_draws_places_anew(colour: Path, tmp_path: Path) -> None:
    found = edited(
        colour, tmp_path, "--a", "sample:1", "--seed", "5", "--complete", "0:2,:;2:3,0:1", "--n", "3"
    )
    names = ["completion.png", "edit.png", "edited.png", "z.safetensors"]
    assert sorted(f.name for f in tmp_path.iterdir()) == names
    model = load_npdraw(str(colour))
    mask = parse_region("0:2,:;2:3,0:1", model.grid)
    z = sampled(model, 1)
    three = z[torch.zeros(3, dtype=torch.int64)]
    completed = model.complete(three, ~mask, torch.Generator().manual_seed(5))
    assert drawn(found) == drawn(completed[:1]) != drawn(z)
    np.testing.assert_array_equal(shown(tmp_path), as_bytes(model.decode(model.render(found))[0]))
    side = model.spec.image_shape[1]
    with Image.open(tmp_path / "completion.png") as page:
        tile = side * -(-100 // side)
        assert page.width == 5 * (tile + 4) + 4  # original, kept, three completions


def test_to_keep_places_is_to_complete_the_others(grey: Path, tmp_path: Path) -> None:
    flags = ["--a", "sample:1", "--b", "sample:2", "--region", "5:6,:"]
    kept = drawn(edited(grey, tmp_path / "keep", *flags, "--keep", "3:6,:"))
    assert kept == drawn(edited(grey, tmp_path / "complete", *flags, "--complete", "0:3,:"))
    z_b = sampled(load_npdraw(str(grey)), 2)
    assert [p for p in kept if p[0] >= 30] == [p for p in drawn(z_b) if p[0] >= 30]


def test_the_appearance_of_a_stays(with_appearance: Path, tmp_path: Path) -> None:
    model, file, out = load_npdraw(str(with_appearance)), tmp_path / "a.png", tmp_path
    picture = np.random.default_rng(0).integers(0, 256, model.spec.image_shape, dtype=np.uint8)
    file.write_bytes(png_of(picture.transpose(1, 2, 0)))
    region = "0:2,1:4;4:5,:"
    saved = edited(with_appearance, out, "--a", str(file), "--b", "sample:2", "--region", region)
    x = torch.tensor(picture)[None] / 255
    z_a = model.encode(x)
    z = editing.compose(z_a, sampled(model, 2), parse_region(region, model.grid), model.spec.order)
    assert drawn(saved) == drawn(z)
    found, canvas = model.infer_appearance(x, model.render(z_a)), model.render(z)
    assert found is not None
    np.testing.assert_array_equal(shown(out), as_bytes(model.decode(canvas, found.q.mean)[0]))
    assert (shown(out) != as_bytes(model.decode(canvas)[0])).any()
    nothing = ["--remove", "0:0,0:0"]
    edited(with_appearance, out, "--a", str(out / "z.safetensors"), *nothing, "--interpolate")
    np.testing.assert_array_equal(shown(out), as_bytes(model.decode(canvas)[0]))
    edited(with_appearance, out, "--a", "sample:3", *nothing)
    own = model.sample(1, torch.Generator().manual_seed(3))
    np.testing.assert_array_equal(shown(out), as_bytes(own[0]))


def test_rows_of_posters_have_what_an_edit_shows(with_appearance: Path) -> None:
    model = load_npdraw(str(with_appearance))
    edits = pictures.Edits(model, str(with_appearance))
    (a, image), (b, _) = (edits.open(f"sample:{seed}") for seed in (1, 2))
    region = parse_region("0:3,:", model.grid)
    made = model.compose(a, b, region)
    row = edits.edit_row(a, b, made, region)
    assert torch.equal(row.canvases, model.render(PartSequence.cat([a.z, b.z, made.z])))
    assert list(zip(row.where.tolist(), a.z.what[a.z.whether].tolist(), strict=True)) == drawn(a.z)
    assert torch.equal(row.parts, model.bank_parts[a.z.what[a.z.whether]])
    for shown, canvas, u in zip(row.images, row.canvases, (a.u, b.u, a.u), strict=True):
        assert torch.equal(shown, model.decode(canvas[None], u)[0])
    completed, found = edits.complete(a, image, ~region, 2, 0, 1.0)
    assert torch.equal(found.keep, ~region)
    assert torch.equal(found.original, row.images[0])
    assert torch.equal(found.canvas, model.render(editing.remove(a.z, region, model.spec.order))[0])
    for shown, canvas in zip(found.images, completed.canvas, strict=True):
        torch.testing.assert_close(shown, model.decode(canvas[None], a.u)[0])


POSTERS = """
edits:
  - {a: "sample:1", b: "sample:2", region: "0:2,:"}
  - {a: "sample:2", b: "sample:1", region: "2:4,1:3;4:5,:"}
completions:
  - {a: "sample:3", keep: "0:2,:"}
  - {a: "sample:3", complete: "2:,:"}
n: 3
seed: 4
"""


def test_posters_show_what_single_edits_do(
    colour: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: dict[str, Any] = {}
    for name in ("save_edits", "save_completions"):
        save = getattr(pictures, name)

        def noting(path: Path, rows: Any, *rest: Any, save: Any = save) -> None:
            saved[path.name] = rows
            save(path, rows, *rest)

        monkeypatch.setattr(pictures, name, noting)
    (tmp_path / "list.yaml").write_text(POSTERS)
    posters, out = tmp_path / "posters", tmp_path / "out"
    edit.main(["--model", str(colour), "--out", str(posters), "--posters", str(tmp_path / "list.yaml")])
    assert sorted(f.name for f in posters.iterdir()) == sorted(saved) == ["completions.png", "edits.png"]
    rows, completions = saved["edits.png"], saved["completions.png"]
    assert len(rows) == 2
    edited(colour, out, "--a", "sample:2", "--b", "sample:1", "--region", "2:4,1:3;4:5,:")
    np.testing.assert_array_equal(shown(out), as_bytes(rows[1].images[2]))
    assert [len(row.images) for row in completions] == [3, 3]
    assert torch.equal(completions[0].keep, completions[1].keep)
    edited(colour, out, "--a", "sample:3", "--keep", "0:2,:", "--n", "3", "--seed", "4")
    np.testing.assert_array_equal(shown(out), as_bytes(completions[0].images[0]))
    assert not torch.equal(completions[0].images, completions[1].images)  # each row has a seed of its own


ONE = "--a sample:1 "


# More mistakes of the command are in tests/test_mistakes.py.
@pytest.mark.parametrize(
    ("flags", "posters", "words"),
    [
        (ONE + "--n 2 --remove :,:", "", "--n"),
        (ONE + "--n 65 --keep :,:", "", "n: "),
        (ONE + "--complete :,: --keep :,:", "", "--complete and --keep"),
        (ONE + "--keep 0:2,0:2;", "", "region ''"),
        (ONE + "--posters list.yaml", "n: 2", "--posters"),
        ("--posters list.yaml", "n: 2", "`edits`"),
        ("--posters list.yaml", "edits: [{a: 'sample:1', b: 'sample:2'}]", "edits.0.region"),
        ("--posters list.yaml", "completions: [{a: 'sample:1'}]", "`complete` and `keep`"),
        ("--posters list.yaml", "completions: [{a: 'sample:x', keep: '0:1,:'}]", "sample:x"),
        ("--posters list.yaml", "completions: [{a: 'sample:1', keep: '0:9,:'}]", "'0:9,:'"),
        ("--posters list.yaml", "edit: []", "unknown key edit"),
        ("--posters list.yaml", "n: [", "list.yaml"),
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
    assert parse_region(":,:", grid).all()
    assert not parse_region("3:3,0:6", grid).any()
    assert not parse_region(None, grid).any()
    assert parse_region("0:1,0:2; 5:6,5:", grid).nonzero()[:, 0].tolist() == [0, 1, 35]
    assert parse_move("1,2:5,0", grid) == (8, 30)


def test_without_a_model_the_last_run_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "runs" / "mine", GREY)
    sample.main(["--n", "2", "--out", "out"])
    assert "runs/mine" in capsys.readouterr().out
    assert (tmp_path / "out" / "samples.png").exists()
