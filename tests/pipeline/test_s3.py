"""Data and runs on S3 without Ray. Whole runs are in test_s3_faults.py."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow import fs

from npdraw_dist import train
from npdraw_dist.config.schema import DataConfig
from npdraw_dist.data.ingest import Show
from npdraw_dist.data.rows import Rows
from npdraw_dist.data.shards import open_source
from npdraw_dist.data.splits import SPLITS
from npdraw_dist.pipeline.data import prepare
from npdraw_dist.pipeline.store import Store
from npdraw_dist.system.errors import UserError
from npdraw_dist.system.storage import copy, open_filesystem
from tests.helpers.image_files import images
from tests.helpers.rows import concat
from tests.helpers.runs import IN_PROCESS, Refused
from tests.pipeline.test_inputs import words


def in_id_order(rows: Rows) -> Rows:
    return rows.take(sorted(range(len(rows)), key=rows.ids.__getitem__))


def test_a_prepared_set_resumes_and_reads_back(bucket: str) -> None:
    def killed(images: int, images_per_s: float) -> None:
        """Called when a shard is written."""
        raise KeyboardInterrupt

    data, out = DataConfig(shard_rows=60, fraction=0.1), f"{bucket}/shards"

    def prepared(seed: int, show: Show = lambda images, rate: None) -> dict[str, Any]:
        return prepare(data, seed, out, "webdataset", open_source(data, seed), show)

    with pytest.raises(KeyboardInterrupt):
        prepared(0, killed)
    filesystem, root = open_filesystem(out)
    assert not filesystem.get_file_info(f"{root}/manifest.json").is_file
    manifest = prepared(0)
    assert prepared(0) == manifest
    original = open_source(data, 0)
    back = open_source(DataConfig(source="webdataset", path=out, image_size=28, channels=1), 5)
    for split in SPLITS:
        first, second = (
            in_id_order(concat([shard.read() for shard in of.shards(split)])) for of in (original, back)
        )
        assert first.ids == second.ids
        np.testing.assert_array_equal(first.images, second.images)
        np.testing.assert_array_equal(first.labels, second.labels)
    with pytest.raises(UserError, match="another source or config"):
        prepared(1)


def test_data_on_s3_may_be_gone_after_the_first_stage(bucket: str, tmp_path: Path, refused: Refused) -> None:
    storage = f"{bucket}/runs"
    filesystem, root = open_filesystem(f"{bucket}/data")
    copy(fs.LocalFileSystem(), str(images(tmp_path / "data", 40)), filesystem, root)
    train.main([*words(f"{bucket}/data", storage), *IN_PROCESS, "--stages", "data,bank"])
    manifest = Store.open(storage, "run").read_json("data", "manifest.json")
    assert (manifest["images"], manifest["source"]["path"]) == (40, f"{bucket}/data")
    filesystem.delete_dir(root)
    train.main([*words(f"{bucket}/data", storage), *IN_PROCESS, "--stages", "parse"])
    assert Store.open(storage, "run").read_json("parses", "manifest.json")["images"] == 40
    line = refused(
        train.main, *words(images(tmp_path / "other", 41), storage), *IN_PROCESS, "--stages", "bank"
    )
    assert f"the images of run {storage}/run differ from those that it has read" in line
