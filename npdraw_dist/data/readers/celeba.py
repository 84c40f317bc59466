"""CelebA (Liu et al., 2015): aligned faces, cropped to 148 and resized to 64x64 as the authors do."""

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
from npdraw_dist.data.splits import SPLITS, Split

CROP = 148
PARTITION = "list_eval_partition.txt"
LAYOUT = f"celeba/img_align_celeba/*.jpg and celeba/{PARTITION}"


def _root(folder: Path) -> Path | None:
    return first_folder(
        (folder / "celeba", folder),
        lambda root: (root / "img_align_celeba").is_dir() and (root / PARTITION).is_file(),
    )


def _download(folder: Path) -> None:
    datasets.CelebA(str(folder), split="all", download=True)


def open_celeba(data: DataConfig, seed: int) -> ListedSource:
    """The source, with the splits of its partition file. It has no labels."""
    root = find_data(data, _root, LAYOUT, _download)
    items: dict[Split, list[tuple[str, int]]] = {split: [] for split in SPLITS}
    for number, line in enumerate((root / PARTITION).read_text().splitlines(), 1):
        fields = line.split()
        if len(fields) != 2 or fields[1] not in ("0", "1", "2"):
            raise UserError(f"{root / PARTITION}, line {number}: expected a file name and 0, 1 or 2")
        items[SPLITS[int(fields[1])]].append((fields[0], -1))
    reader = FileReader(
        fs.LocalFileSystem(), str(root / "img_align_celeba"), Frame(data.shape, fit="crop", most=CROP)
    )
    names = [f"img_align_celeba/{name}" for split in SPLITS for name, _ in items[split]]
    inputs = Inputs(fs.LocalFileSystem(), str(root), (PARTITION, *names), is_folder=True)
    return ListedSource(data, seed, reader, items, inputs)
