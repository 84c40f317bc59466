"""A local folder of pictures for `fit`, with the classes or words that it or a table states."""

import csv
import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa

from npdraw_dist.config.schema import DataConfig
from npdraw_dist.core.pictures import SUFFIXES, Frame
from npdraw_dist.core.vocabulary import words_in
from npdraw_dist.data.listing import list_tree, stamp_of
from npdraw_dist.data.readers.files import LOCAL, Files, by_split, pictures_in, read_files
from npdraw_dist.data.rows import Rows
from npdraw_dist.data.splits import Split
from npdraw_dist.system.errors import UserError

UNSPLIT = DataConfig(valid_fraction=0.0, test_fraction=0.0)
FOLDERS, NAMES, TABLE = "folders", "names", ".csv"
FILE_COLUMNS, COLUMNS = ("file", "file_name"), {"label": "label", "words": "words", "caption": "words"}
LEAST = 3  # a class or a word of fewer training pictures is left out
SHOWN = 6  # largest number of classes or words that a line names
LETTERS = re.compile(r"[^\W\d_]+")


@dataclass(frozen=True)
class Folder:
    """A local folder of pictures, as the source `imagefolder` reads it.

    splits: the pictures by split. Names of the top folders, such as `valid`, state the split; without such
    names all pictures are for training. stamp: a hash that changes with the files and their labels.
    """

    root: str
    splits: Mapping[Split, Files]
    classes: tuple[str, ...]
    stamp: str

    @classmethod
    def at(cls, folder: str | Path) -> "Folder":
        """Lists a folder. Raises UserError if it is at a URI or has no picture for training."""
        if "://" in str(folder):
            raise UserError(
                f"images are at {folder}; copy them here, or use `npdraw train` with this --data.path"
            )
        root = str(Path(folder).expanduser().absolute())
        listing = pictures_in(list_tree(LOCAL, root))
        splits, classes = by_split(listing["path"].combine_chunks(), UNSPLIT, 0)
        if not len(splits["train"]):
            raise UserError(f"{root} has no image ({', '.join(SUFFIXES)})")
        return cls(root, splits, tuple(classes), stamp_of(listing))

    def __len__(self) -> int:
        return sum(map(len, self.splits.values()))

    def some(self, most: int) -> Files:
        """A seeded sample of at most `most` pictures for training."""
        files = self.splits["train"]
        order = np.random.default_rng(0).permutation(len(files))[:most]
        return files.take(np.sort(order))

    def read(self, frame: Frame, most: int | None) -> Rows:
        """Reads all pictures, or a sample of at most `most` training pictures."""
        files = self.splits.values() if most is None else [self.some(most)]
        return Rows.cat([read_files(LOCAL, self.root, frame, False, some) for some in files])

    def unlabelled(self) -> "Folder":
        """The folder without classes."""
        none = {split: replace(f, labels=np.full(len(f), -1, np.int64)) for split, f in self.splits.items()}
        return replace(self, splits=none, classes=())


@dataclass(frozen=True)
class FolderLabels:
    """The classes or words of a folder of pictures.

    source: FOLDERS, NAMES or the path of a table. column: `label` or `words`. counts: class or word -> its
    number of training pictures. unlabelled: the number of training pictures without a label.
    """

    source: str
    column: str
    counts: Counter[str]
    unlabelled: int

    @classmethod
    def found(cls, folder: Folder, source: str | Path) -> "FolderLabels":
        """The labels of the training pictures. Raises UserError on a wrong source or less than two labels."""
        column, texts = _texts(folder, str(source))
        counts, unlabelled = Counter[str](), 0
        for split, files in folder.splits.items():
            for named in (_entries(texts.get(item.path, ""), column) for item in files):
                counts.update(dict.fromkeys(named, int(split == "train")))
                unlabelled += split == "train" and not named
        labels = cls(str(source), column, counts, unlabelled)
        if len(labels.kept) < 2:
            raise UserError(
                f"labels {source}: fewer than two {labels.what} have {LEAST} pictures or more "
                f"({labels.shown(list(counts)) or 'there is none'}); give other labels, or none"
            )
        return labels

    @property
    def condition(self) -> str:
        """The value of `prior.condition`."""
        return "class" if self.column == "label" else "words"

    @property
    def what(self) -> str:
        return "classes" if self.column == "label" else "words"

    @property
    def kept(self) -> tuple[str, ...]:
        """The classes or words that are learned, sorted."""
        return tuple(sorted(entry for entry, count in self.counts.items() if count >= LEAST))

    def of(self, folder: Folder, source: str | Path | None = None) -> Folder:
        """The folder with these classes or words only; other pictures are unlabelled.

        source: where the labels of this folder are, if not at the same source. Raises UserError if a picture
        has a class that no training picture has.
        """
        column, texts = _texts(folder, self.source if source is None else str(source))
        if column != self.column:
            raise UserError(f"the training pictures have {self.what}, but those for validation do not")
        kept, digest = self.kept, hashlib.sha256(folder.stamp.encode())
        numbers, splits = {name: number for number, name in enumerate(kept)}, dict[Split, Files]()
        for split, files in folder.unlabelled().splits.items():
            named = [_entries(texts.get(item.path, ""), column) for item in files]
            if column == "words":
                own = [" ".join(word for word in words if word in numbers) for words in named]
                splits[split] = replace(files, texts=pa.array(own, pa.large_string()))
            else:
                others = {name for names in named for name in names} - set(self.counts)
                if others:
                    raise UserError(
                        f"images for validation have a class {min(others)!r}, which no other image has"
                    )
                labels = [numbers.get(name, -1) for names in named for name in names or [""]]
                splits[split] = replace(files, labels=np.array(labels, np.int64))
            digest.update(f"{split} {named}".encode())
        classes = kept if column == "label" else ()
        return replace(folder, splits=splits, classes=classes, stamp=digest.hexdigest())

    def shown(self, entries: Sequence[str]) -> str:
        """The most frequent ones of `entries` with their counts."""
        often = sorted(entries, key=lambda entry: (-self.counts[entry], entry))
        shown = [f"{entry} {self.counts[entry]}" for entry in often[:SHOWN]]
        return ", ".join([*shown, "..."] if len(often) > SHOWN else shown)

    def line(self) -> str:
        """What is learned and what is left out, for the user."""
        where = {FOLDERS: "the folders", NAMES: "the file names"}.get(self.source, self.source)
        line = f"{len(self.kept)} {self.what} from {where} ({self.shown(self.kept)})"
        if rare := sorted(set(self.counts) - set(self.kept)):
            line += f"; left out, with fewer than {LEAST} pictures: {len(rare)} ({self.shown(rare)})"
        return line + (f"; pictures without any: {self.unlabelled}" if self.unlabelled else "")


def _entries(text: str, column: str) -> list[str]:
    """The class or the different words of a text."""
    return list(dict.fromkeys(words_in(text))) if column == "words" else [text] if text else []


def _texts(folder: Folder, source: str) -> tuple[str, dict[str, str]]:
    """(the column `label` or `words`, path of a picture -> its label). Raises UserError on a wrong source."""
    items = [item for files in folder.splits.values() for item in files]
    if source == FOLDERS:
        return "label", {item.path: folder.classes[item.label] for item in items if item.label >= 0}
    if source == NAMES:  # numbers are left out, as of IMG_0042.png
        stems = {item.path: PurePosixPath(item.path).stem for item in items}
        return "words", {path: " ".join(LETTERS.findall(stem)) for path, stem in stems.items()}
    if not source.lower().endswith(TABLE):
        raise UserError(f"labels is {source!r}; give {FOLDERS}, {NAMES}, none, or the path of a {TABLE} file")
    return _table(Path(source).expanduser(), folder.root, {item.path for item in items})


def _table(path: Path, root: str, pictures: set[str]) -> tuple[str, dict[str, str]]:
    """Reads a CSV file with the column `file` and one of COLUMNS. pictures: their paths below `root`."""
    found = dict[str, str]()
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            header = [name.strip() for name in rows.fieldnames or ()]
            rows.fieldnames = header
            names = [name for name in FILE_COLUMNS if name in header]
            values = [name for name in COLUMNS if name in header]
            if len(names) != 1 or len(values) != 1:
                raise UserError(
                    f"{path} must have the column file (or file_name) and one of label, words and caption; "
                    f"it has {', '.join(header) or 'no column'}"
                )
            for row in rows:
                name = str(PurePosixPath((row[names[0]] or "").strip()))
                if name not in pictures:
                    raise UserError(f"{path}, line {rows.line_num}: {root} has no picture {name}")
                if name in found:
                    raise UserError(f"{path}, line {rows.line_num}: {name} occurs twice")
                found[name] = (row[values[0]] or "").strip()
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"labels {path} cannot be read: {error}") from None
    return COLUMNS[values[0]], found
