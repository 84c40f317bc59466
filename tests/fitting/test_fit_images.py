"""Images of any kind as `npdraw_dist.fit` takes them, and what follows from them."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import TensorDataset

import npdraw_dist
from npdraw_dist.config.load import resolve
from npdraw_dist.data import rows
from npdraw_dist.fitting.fit import suited
from npdraw_dist.fitting.fit_images import canvas_scale, labelled, pictures_of
from npdraw_dist.fitting.fit_source import split_train
from npdraw_dist.system.errors import UserError
from tests.helpers.tiny_fit import COLOUR, GREY, SMALL, strokes

BUDGETS: dict[str, Any] = {stage: {"images": 32} for stage in ("prior", "vae")}


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
    found, classes = labelled(pictures_of(shuffled["path"]), shuffled["label"], "label")
    np.testing.assert_array_equal(found.images[:, 0], GREY[[3, 0, 4, 1]])
    assert [classes[n] for n in found.known_labels()] == ["d", "a", "e", "b"]


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
        whole = {**settings, "data": {**settings["data"], "source": "parquet", "path": "x"}}
        assert resolve(preset, None, whole).scale.in_process
    for side, scale in ((36, 1), (64, 2), (96, 3), (100, 4), (128, 4)):
        assert chosen(np.zeros((4, 1, side, side), np.uint8))[1]["grid"]["downscale"] == scale
    for side in (61, 160):
        with pytest.raises(UserError, match=f"image_size {side}"):
            chosen(np.zeros((4, 1, side, side), np.uint8))


@pytest.mark.parametrize(("side", "chosen_side"), [(60, 60), (61, 64)])
def test_pictures_of_one_small_size_keep_it_where_a_canvas_fits_it(side: int, chosen_side: int) -> None:
    assert pictures_of([Image.new("L", (side, side))] * 2).images.shape[-1] == chosen_side


@pytest.mark.parametrize(
    ("sizes", "chosen_size"),
    [
        ([(320, 240)] * 3, (48, 64)),  # (width, height) of the pictures, (height, width) of the images
        ([(20, 28)] * 3, (28, 20)),
        ([(40, 30), (44, 33)], (24, 32)),
        ([(600, 400)] * 30 + [(9, 9)], (44, 64)),
        ([(40, 30)] * 6 + [(30, 40)] * 4, (32, 32)),
        ([(9, 60)] * 3, (32, 32)),
    ],
)
def test_pictures_keep_a_shape_that_nearly_all_have(sizes: Any, chosen_size: Any) -> None:
    pictures = pictures_of([Image.new("L", size) for size in sizes])
    assert pictures.images.shape[2:] == chosen_size
    assert canvas_scale(*chosen_size) is not None


def test_a_model_draws_images_that_are_wider_than_high(tmp_path: Path) -> None:
    model = npdraw_dist.fit(strokes()[:, :8], name="wide", storage=tmp_path, **SMALL)
    again = npdraw_dist.fit(strokes()[:, :8], init=model, storage=tmp_path, name="more", **BUDGETS)
    loaded = npdraw_dist.load(tmp_path / "wide")
    assert model.sample(2).shape == again.sample(2).shape == loaded.sample(2).shape == (2, 1, 8, 12)


@pytest.mark.parametrize(
    ("labels", "column", "classes", "expected"),
    [
        ([3, 0, 0, 1, 3], None, "0 1 2 3", [3, 0, 0, 1, 3]),
        (np.array([1, 1, 0, 1, 0]), None, "0 1", [1, 1, 0, 1, 0]),
        (["b", "a", "a", "b", "b"], None, "a b", [1, 0, 0, 1, 1]),
        (["ab", "c", "d", "e", "f"], None, "", ["ab", "c", "d", "e", "f"]),
        (["ab", "c", "d", "e", "f"], "label", "ab c d e f", [0, 1, 2, 3, 4]),
        (list(torch.tensor([10, 2, 0, 1, 3])), None, "0 1 2 3 4 5 6 7 8 9 10", [10, 2, 0, 1, 3]),
        ([np.int64(2), *map(np.int64, [1, 0, 1, 2])], None, "0 1 2", [2, 1, 0, 1, 2]),
        ([True, False, False, True, True], None, "False True", [1, 0, 0, 1, 1]),
        ([3_000_000, 1, 1, 3_000_000, 1], None, "1 3000000", [1, 0, 0, 1, 0]),
        (pa.array([2, 1, 0, 1, 2]), None, "0 1 2", [2, 1, 0, 1, 2]),
        # Unknown labels.
        ([3, -1, 0, 1, -1], None, "0 1 2 3", [3, -1, 0, 1, -1]),
        (np.array([-1, 1, 1, 0, 0]), None, "0 1", [-1, 1, 1, 0, 0]),
        ([1, None, 0, -1, 1], None, "0 1", [1, -1, 0, -1, 1]),
        (np.array([1.0, np.nan, 0.0, -1.0, 1.0]), None, "0 1", [1, -1, 0, -1, 1]),  # as pandas has them
        ([None, "b", "a", float("nan"), "b"], "label", "a b", [-1, 1, 0, -1, 1]),
        ([None, "b", "-1", "b", "b"], None, "-1 b", [-1, 1, 0, 1, 1]),
        ([None, "a", "c", "d", float("nan")], None, "", ["", "a", "c", "d", ""]),
        ([None] * 5, "words", "", [""] * 5),
    ],
)
def test_labels_are_classes_or_words(labels: Any, column: str | None, classes: str, expected: Any) -> None:
    found, names = labelled(pictures_of(GREY), labels, column)
    assert names == tuple(classes.split())
    assert (found.known_labels().tolist() if classes else found.words) == expected


def test_labels_none_of_which_is_known_are_refused() -> None:
    for labels in ([-1] * 5, [None] * 5):
        with pytest.raises(UserError, match="all labels are None"):
            labelled(pictures_of(GREY), labels)


def test_the_label_of_an_item_may_be_a_tensor() -> None:
    for label in (3, np.int64(3), torch.tensor(3)):
        assert pictures_of([(GREY[0], label), (GREY[1], label)]).known_labels().tolist() == [3, 3]


def split_of(count: int, share: float, copies: int = 1) -> dict[str, rows.Rows]:
    """Training and validation images of `count` different images, each with `copies` copies."""
    images = np.arange(count * copies).astype(np.uint32)[:, None, None, None] // copies
    found = rows.Rows([f"{n}.png" for n in range(len(images))], images.view(np.uint8).reshape(-1, 4, 1, 1))
    splits = split_train(found, found, resolve("emoji", None, {"data": {"valid_fraction": share}}))
    parts = {str(name): part for name, part in splits.items() if isinstance(part, rows.Rows)}
    assert sorted(id for part in parts.values() for id in part.ids) == sorted(found.ids)
    return parts


def held_out_of(count: int, share: float) -> int:
    """The number of `count` images that are held out for validation."""
    return len(split_of(count, share)["valid"])


def test_images_are_held_out_for_validation() -> None:
    """By a hash of the id, and one at least where that takes none."""
    assert 100 < held_out_of(2000, 0.1) < 300
    assert held_out_of(7, 0.0) == 0
    for count in range(2, 30):
        assert held_out_of(count, 0.001) == 1


@pytest.mark.parametrize("count", range(2, 30))
def test_copies_of_few_images_are_in_one_split(count: int) -> None:
    splits = split_of(count, 0.001, copies=2)
    held_out = {image.tobytes() for image in splits["valid"].images}
    assert len(held_out) == 1
    assert not held_out & {image.tobytes() for image in splits["train"].images}


def test_a_single_picture_is_refused() -> None:
    with pytest.raises(UserError, match="two different pictures"):
        split_of(1, 0.001, copies=3)
