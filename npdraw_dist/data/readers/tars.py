"""Reads WebDataset tar shards with an image and, optionally, `cls`, `txt` and `id` for each key."""

import re
import tarfile
import zlib
from collections.abc import Collection, Iterator
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyarrow import fs
from webdataset.shardlists import expand_urls
from webdataset.tariterators import base_plus_ext, group_by_keys, tar_file_iterator

from npdraw_dist.config.schema import DataConfig
from npdraw_dist.core.pictures import SUFFIXES, BadPicture, Frame, read_picture
from npdraw_dist.data.rows import RowBuilder, Rows, frame_of
from npdraw_dist.data.shards import Part, Source, file_splits, of_files
from npdraw_dist.data.splits import HashSplit, Split
from npdraw_dist.system.errors import UserError
from npdraw_dist.system.storage import list_files, open_filesystem

TARS = (".tar", ".tar.gz", ".tgz")
ENDS = (tarfile.TarError, EOFError, zlib.error)  # errors of a file that is damaged or ends too early
LABEL = re.compile(rb"-?\d{1,18}")  # numbers that fit an int64


def find_tars(pattern: str) -> tuple[fs.FileSystem, list[str], str | None]:
    """The filesystem, the path of each tar, and the folder `pattern`, or None if it is not a folder.

    `pattern` is a tar, a folder of tars or a brace pattern, local or a URI. Raises UserError if a tar is
    missing.
    """
    try:
        urls = expand_urls(pattern)
    except ValueError as error:
        raise UserError(f"data.path {pattern} is no pattern: {error}") from None
    filesystem, first = open_filesystem(urls[0])
    if "://" in pattern:
        head, _, tail = urls[0].partition(first)
        paths = [url.removeprefix(head).removesuffix(tail) for url in urls]
    else:
        paths = [open_filesystem(url)[1] for url in urls]
    is_folder = len(paths) == 1 and filesystem.get_file_info(first).type == fs.FileType.Directory
    if is_folder:
        found = [path for path, _ in list_files(filesystem, first) if path.endswith(TARS)]
        if not found:
            raise UserError(f"data.path {pattern} has no tar shard ({', '.join(TARS)})")
        return filesystem, found, first
    infos = filesystem.get_file_info(paths)
    missing = [info.path for info in infos if info.type != fs.FileType.File]
    if missing:
        raise UserError(f"data.path {pattern}: {len(missing)} of {len(paths)} tars are missing: {missing[0]}")
    return filesystem, paths, None


def _key(member: str) -> str:
    return base_plus_ext(member)[0] or member


def _samples(
    filesystem: fs.FileSystem, path: str, cut: list[str], repeated: set[str]
) -> Iterator[dict[str, Any]]:
    """Yields the samples of a tar. Raises UserError if the file is not a tar.

    Adds the key at which a truncated tar ends to `cut`, and each key with two members of the same name to
    `repeated`.
    """
    last = ""

    def begins(name: str) -> str:
        nonlocal last
        last = name
        return name

    def breaks(error: Exception) -> bool:
        if not isinstance(error, ENDS):  # the storage failed; the tar may be intact
            raise error
        cut.append(_key(last))
        return False

    def repeats(error: Exception) -> bool:
        repeated.add(_key(str(error.args[0]).partition(": duplicate file name")[0]))
        return True

    def files() -> Iterator[dict[str, Any]]:
        try:
            with filesystem.open_input_stream(path) as stream:
                for file in tar_file_iterator(stream, handler=breaks, rename_files=begins):
                    yield {**file, "__url__": path}
        except ENDS as error:
            if not last:
                raise UserError(f"{path} is no readable tar ({error}); write it again") from None
            cut.append(f"{_key(last)} and what follows")

    yield from group_by_keys(files(), handler=repeats)


def _read_tar(
    filesystem: fs.FileSystem,
    path: str,
    frame: Frame,
    rule: HashSplit,
    stated: Split | None,
    wanted: Collection[Split],
) -> dict[Split, Rows]:
    def image(sample: dict[str, Any]) -> NDArray[np.uint8]:
        names = [name for name in sample if f".{name}".endswith(SUFFIXES)]
        names = [name for name in names if "." not in name] or names  # prefers `jpg` to `mask.png`
        if not names:
            raise BadPicture("no image member")
        if len(names) > 1:
            raise BadPicture(f"{len(names)} image members, such as {names[0]} and {names[1]}")
        return read_picture(sample[names[0]], frame)

    builders: dict[Split | None, RowBuilder] = {split: RowBuilder(frame.shape) for split in wanted}
    cut, repeated = list[str](), set[str]()
    truncated, last = "truncated tar member", ""
    for sample in _samples(filesystem, path, cut, repeated):
        last = sample["__key__"]
        name = sample["id"].decode(errors="replace") if "id" in sample else last
        builder = builders.get(rule.kept_in(name, stated))
        if builder is None:
            continue
        label = sample.get("cls", b"-1").strip()
        if cut == [last]:
            builder.reject(name, truncated)
        elif not LABEL.fullmatch(label):
            builder.reject(name, f"cls {label[:20]!r} is no integer")
        else:
            text = sample.get("txt", b"").decode(errors="replace").strip()
            builder.add(name, int(label), partial(image, sample), text)
    others = dict.fromkeys(sorted(repeated), "duplicate id")
    others |= {key: truncated for key in cut if key != last}
    for name, reason in others.items():
        if (builder := builders.get(rule.kept_in(name, stated))) is not None:
            builder.reject(name, reason)
    return {split: builders[split].rows() for split in wanted}


def open_webdataset(data: DataConfig, seed: int) -> Source:
    """Opens tars. A tar's folder or name states the split of its images; otherwise a hash of the id decides.

    The id is the member `id`, or the key if there is no such member.
    """
    if data.path is None:
        raise UserError(
            "data.source webdataset needs --data.path: a tar, a folder of tars or a {00..99} pattern"
        )
    filesystem, tars, root = find_tars(data.path)
    layout = file_splits(data, filesystem, tars, root)
    rule = HashSplit.of(data, seed, layout.own)
    parts = []
    for path in tars:
        stated = layout.stated[path]
        read = partial(_read_tar, filesystem, path, frame_of(data), rule, stated)
        parts.append(Part(rule.possible(stated), read))
    classes = () if layout.prepared is None else layout.prepared.classes
    return of_files(data, seed, parts, layout.counts, layout.stamp, classes)
