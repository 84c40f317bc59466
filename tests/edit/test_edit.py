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
from npdraw_dist.serve import __main__ as serve
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


def mask_of(model: NPDraw, places: str) -> torch.Tensor:
    return parse_region(places, model.grid)


def shown(out: Path) -> NDArray[np.uint8]:
    return pixels((out / "edited.png").read_bytes())


@pytest.mark.parametrize("kind", ["grey", "colour"])
def test_the_prior_draws_places_anew(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(kind)
    flags = ["--model", str(folder), "--a", "sample:1", "--seed", "5", "--out", str(tmp_path / "out")]
    edit.main([*flags, "--complete", "0:2,:;2:3,0:1", "--n", "3"])
    names = ["completion.png", "edit.png", "edited.png", "z.safetensors"]
    assert sorted(f.name for f in (tmp_path / "out").iterdir()) == names
    model = load_npdraw(str(folder))
    mask = mask_of(model, "0:2,:;2:3,0:1")
    assert torch.equal(mask, mask_of(model, "0:2,:") | mask_of(model, "2:3,0:1"))
    z = model.sample_prior(1, torch.Generator().manual_seed(1))
    three = z[torch.zeros(3, dtype=torch.int64)]
    completed = model.complete(three, ~mask, torch.Generator().manual_seed(5))
    found = PartSequence.load(tmp_path / "out" / "z.safetensors")
    assert drawn(found) == drawn(completed[:1]) != drawn(z)
    np.testing.assert_array_equal(shown(tmp_path / "out"), as_bytes(model.decode(model.render(found))[0]))
    side = model.spec.image_shape[1]
    with Image.open(tmp_path / "out" / "completion.png") as page:
        tile = side * -(-100 // side)
        assert page.width == 5 * (tile + 4) + 4  # original, kept, three completions


def test_to_keep_places_is_to_complete_the_others(grey: Path, tmp_path: Path) -> None:
    flags = ["--model", str(grey), "--a", "sample:1", "--b", "sample:2", "--region", "5:6,:"]
    edit.main([*flags, "--keep", "3:6,:", "--out", str(tmp_path / "keep")])
    edit.main([*flags, "--complete", "0:3,:", "--out", str(tmp_path / "complete")])
    kept, completed = (PartSequence.load(tmp_path / name / "z.safetensors") for name in ("keep", "complete"))
    assert drawn(kept) == drawn(completed)
    model = load_npdraw(str(grey))
    z_b = model.sample_prior(1, torch.Generator().manual_seed(2))
    assert [p for p in drawn(kept) if p[0] >= 30] == [p for p in drawn(z_b) if p[0] >= 30]


def test_the_appearance_of_a_stays(with_appearance: Path, tmp_path: Path) -> None:
    model, file = load_npdraw(str(with_appearance)), tmp_path / "a.png"
    picture = np.random.default_rng(0).integers(0, 256, model.spec.image_shape, dtype=np.uint8)
    file.write_bytes(png_of(picture.transpose(1, 2, 0)))
    flags = ["--model", str(with_appearance), "--out", str(tmp_path)]
    edit.main([*flags, "--a", str(file), "--b", "sample:2", "--region", "0:2,1:4;4:5,:"])
    x = torch.tensor(picture)[None] / 255
    z_a, z_b = model.encode(x), model.sample_prior(1, torch.Generator().manual_seed(2))
    z = editing.compose(z_a, z_b, mask_of(model, "0:2,1:4;4:5,:"), model.spec.order)
    assert drawn(PartSequence.load(tmp_path / "z.safetensors")) == drawn(z)
    found, canvas = model.infer_appearance(x, model.render(z_a)), model.render(z)
    assert found is not None
    u = found.q.mean
    np.testing.assert_array_equal(shown(tmp_path), as_bytes(model.decode(canvas, u)[0]))
    assert (shown(tmp_path) != as_bytes(model.decode(canvas)[0])).any()
    edit.main([*flags, "--a", str(tmp_path / "z.safetensors"), "--remove", "0:0,0:0", "--interpolate"])
    np.testing.assert_array_equal(shown(tmp_path), as_bytes(model.decode(canvas)[0]))


def test_a_sample_keeps_its_own_appearance(with_appearance: Path, tmp_path: Path) -> None:
    model = load_npdraw(str(with_appearance))
    edit.main(
        ["--model", str(with_appearance), "--a", "sample:3", "--remove", "0:0,0:0", "--out", str(tmp_path)]
    )
    np.testing.assert_array_equal(
        shown(tmp_path), as_bytes(model.sample(1, torch.Generator().manual_seed(3))[0])
    )


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--n", "2", "--remove", ":,:"], "--n counts completions: give --complete or --keep"),
        (["--n", "65", "--keep", ":,:"], "n: input should be less than or equal to 64"),
        (["--complete", ":,:", "--keep", ":,:"], "--complete and --keep: give one"),
        (["--complete", "0:2,0:9"], "region '0:2,0:9': the grid has 6 rows and 6 columns"),
        (["--keep", "0:2,0:2;"], "region '' is not R0:R1,C0:C1"),
        (["--keep", ":,:", "--temperature", "0"], "temperature: input should be greater than 0"),
    ],
)
def test_mistakes_of_completions(
    flags: list[str], words: str, grey: Path, tmp_path: Path, refused: Refused
) -> None:
    out = tmp_path / "out"
    assert words in refused(edit.main, "--model", str(grey), "--a", "sample:1", "--out", str(out), *flags)
    assert not out.exists()


def test_rows_of_posters_have_what_an_edit_shows(with_appearance: Path) -> None:
    model = load_npdraw(str(with_appearance))
    edits = pictures.Edits(model, str(with_appearance))
    (a, image), (b, _) = (edits.open(f"sample:{seed}") for seed in (1, 2))
    region = mask_of(model, "0:3,:")
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
    monkeypatch.setattr("npdraw_dist.edit.pictures.save_edits", lambda path, *rest: saved.update(edits=rest))
    monkeypatch.setattr(
        "npdraw_dist.edit.pictures.save_completions", lambda path, *rest: saved.update(completions=rest)
    )
    (tmp_path / "list.yaml").write_text(POSTERS)
    flags = ["--model", str(colour), "--out", str(tmp_path)]
    edit.main([*flags, "--posters", str(tmp_path / "list.yaml")])
    rows, _ = saved["edits"]
    assert len(rows) == 2
    edit.main([*flags, "--a", "sample:2", "--b", "sample:1", "--region", "2:4,1:3;4:5,:"])
    np.testing.assert_array_equal(shown(tmp_path), as_bytes(rows[1].images[2]))
    completions, _ = saved["completions"]
    assert [len(row.images) for row in completions] == [3, 3]
    assert torch.equal(completions[0].keep, completions[1].keep)
    edit.main([*flags, "--a", "sample:3", "--keep", "0:2,:", "--n", "3", "--seed", "4"])
    np.testing.assert_array_equal(shown(tmp_path), as_bytes(completions[0].images[0]))
    assert not torch.equal(completions[0].images, completions[1].images)  # each row has a seed of its own


def test_posters_are_written(grey: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "list.yaml").write_text(POSTERS)
    edit.main(
        ["--model", str(grey), "--posters", str(tmp_path / "list.yaml"), "--out", str(tmp_path / "out")]
    )
    assert sorted(f.name for f in (tmp_path / "out").iterdir()) == ["completions.png", "edits.png"]
    assert "completions.png" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("n: 2", "the list has no entry under `edits` or `completions`"),
        ("edits: [{a: 'sample:1', b: 'sample:2'}]", "edits.0.region is missing"),
        ("completions: [{a: 'sample:1'}]", "completion of sample:1: give one of `complete` and `keep`"),
        ("completions: [{a: 'sample:x', keep: '0:1,:'}]", "sample:x: write sample: and a whole number"),
        ("completions: [{a: 'sample:1', keep: '0:9,:'}]", "region '0:9,:': the grid has 6 rows"),
        ("edit: []", "unknown key edit; did you mean edits?"),
        ("n: [", "list.yaml is not YAML"),
    ],
)
def test_mistakes_in_lists(text: str, words: str, grey: Path, tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "list.yaml").write_text(text)
    out = tmp_path / "out"
    flags = ["--model", str(grey), "--posters", str(tmp_path / "list.yaml"), "--out", str(out)]
    assert words in refused(edit.main, *flags)
    assert not out.exists() or not list(out.iterdir())


def test_a_list_is_given_alone(grey: Path, tmp_path: Path, refused: Refused) -> None:
    flags = ["--model", str(grey), "--out", str(tmp_path / "out")]
    line = refused(edit.main, *flags, "--posters", "list.yaml", "--a", "sample:1")
    assert "--posters names the edits in its file; leave out --a" in line
    assert "--a is missing" in refused(edit.main, *flags, "--remove", ":,:")


def test_images_by_id(grey: Path, tmp_path: Path, refused: Refused) -> None:
    """Training and validation images of the run have ids; no test image is found by one."""
    images = np.random.default_rng(1).integers(0, 256, (5, 1, 28, 28), dtype=np.uint8)
    for split, rows in (("train", slice(0, 3)), ("valid", slice(3, 5))):
        names = [f"picture {number}" for number in range(5)][rows]
        content = to_parquet(Rows(names, images[rows]))
        write_bytes(
            fs.LocalFileSystem(), str(grey.parent / "parses" / split / f"{split}-00009.parquet"), content
        )
    list_parses(fs.LocalFileSystem(), str(grey.parent / "parses"))
    model = load_npdraw(str(grey))
    for number in range(5):
        found = image_with_id(str(grey), model.spec, f"picture {number}")
        np.testing.assert_array_equal(found.numpy(), images[number : number + 1])
    flags = ["--model", str(grey), "--remove", "0:0,0:0", "--out", str(tmp_path)]
    edit.main([*flags, "--a", "id:picture 4"])
    z = model.encode(model.as_input(torch.tensor(images[4:])))
    assert drawn(PartSequence.load(tmp_path / "z.safetensors")) == drawn(z)
    assert "no training or validation image" in refused(edit.main, *flags, "--a", "id:picture 5")


def test_regions() -> None:
    grid = Grid(28, 28, 5, 5)
    assert parse_region("0:6,0:6", grid).all()
    assert parse_region(":,:", grid).all()
    assert not parse_region("3:3,0:6", grid).any()
    assert not parse_region(None, grid).any()
    assert parse_region("0:1,0:2; 5:6,5:", grid).nonzero()[:, 0].tolist() == [0, 1, 35]
    assert parse_region("1:3, 2:4", grid).nonzero()[:, 0].tolist() == [8, 9, 14, 15]
    assert parse_move("1,2:5,0", grid) == (8, 30)


def test_without_a_model_the_last_run_is_taken_or_the_way_to_one_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], refused: Refused
) -> None:
    monkeypatch.chdir(tmp_path)
    for main, flags in ((sample.main, ["--out", "out"]), (serve.main, [])):
        line = refused(main, *flags)
        assert "2 minutes" in line
        assert "npdraw train" in line
    save_model(tmp_path / "runs" / "mine", GREY)
    sample.main(["--n", "2", "--out", "out"])
    assert "taking the last run, runs/mine" in capsys.readouterr().out
    assert (tmp_path / "out" / "samples.png").exists()
