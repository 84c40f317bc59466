"""Omniglot (Lake et al., 2015): 105x105 images in torchvision's folders, resized to 28x28 and inverted."""

from pathlib import Path

from pyarrow import fs
from torchvision import datasets

from npdraw_dist.config.schema import DataConfig
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.pictures import Frame
from npdraw_dist.data.identity import Inputs
from npdraw_dist.data.readers.files import FileReader
from npdraw_dist.data.readers.folders import find_data, first_folder
from npdraw_dist.data.shards import ListedSource
from npdraw_dist.data.splits import Split, holdout, shuffled

PARTS = ("images_background", "images_evaluation")
LAYOUT = "omniglot-py/images_background and omniglot-py/images_evaluation (alphabet/character/*.png)"
# Likelihoods are reported on a split of all alphabets (Burda et al., 2016). Its lists were never published
# for the PNG files, so a fixed permutation takes as many of the 32,460 images.
TRAIN, TEST = 24_345, 8_070
TEST_SEED = 0  # the test set does not depend on the experiment's seed


def _root(folder: Path) -> Path | None:
    """The folder that holds both parts, or None."""
    return first_folder(
        (folder / "omniglot-py", folder), lambda root: all((root / part).is_dir() for part in PARTS)
    )


def _download(folder: Path) -> None:
    for background in (True, False):
        datasets.Omniglot(str(folder), background=background, download=True)


def open_omniglot(data: DataConfig, seed: int) -> ListedSource:
    """The source. Labels number the characters; a smaller set is split in the same proportion."""
    root = find_data(data, _root, LAYOUT, _download)
    names = sorted(
        path.relative_to(root).as_posix() for part in PARTS for path in root.glob(f"{part}/*/*/*.png")
    )
    if not names:
        raise UserError(f"{root} has no image; it must hold {LAYOUT}")
    labels = {c: i for i, c in enumerate(sorted({name.rpartition("/")[0] for name in names}))}
    items = [(name, labels[name.rpartition("/")[0]]) for name in names]
    used = shuffled(items, TEST_SEED, "omniglot")[: TRAIN + TEST]
    test = round(len(used) * TEST / (TRAIN + TEST))
    train, valid = holdout(sorted(used[test:]), data.valid_fraction, seed)
    reader = FileReader(fs.LocalFileSystem(), str(root), Frame(data.shape), invert=True)
    inputs = Inputs(reader.filesystem, reader.root, tuple(names), is_folder=True)
    splits: dict[Split, list[tuple[str, int]]] = {"train": train, "valid": valid, "test": sorted(used[:test])}
    return ListedSource(data, seed, reader, splits, inputs)
