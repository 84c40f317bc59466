"""Data and runs on S3, without Ray. test_s3_faults.py has whole runs."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from pyarrow import fs

from npdraw_dist import train
from npdraw_dist.config.schema import DataConfig
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.storage import copy, open_filesystem
from npdraw_dist.data import prepare as preparing
from npdraw_dist.data.shards import open_source
from npdraw_dist.data.splits import SPLITS
from npdraw_dist.pipeline.inputs import read_inputs
from npdraw_dist.pipeline.store import Store
from tests.helpers.image_files import images
from tests.helpers.rows import concat
from tests.helpers.runs import HERE, Refused
from tests.pipeline.test_inputs import words


def test_a_prepared_set_resumes_and_reads_back(bucket: str) -> None:
    def killed(images: int, images_per_s: float) -> None:
        """Once a shard is written."""
        raise KeyboardInterrupt

    data, out = DataConfig(shard_rows=60, fraction=0.1), f"{bucket}/shards"
    with pytest.raises(KeyboardInterrupt):
        preparing.prepare(data, 0, out, "webdataset", killed)
    filesystem, root = open_filesystem(out)
    assert not filesystem.get_file_info(f"{root}/manifest.json").is_file
    manifest = preparing.prepare(data, 0, out, "webdataset")
    assert preparing.prepare(data, 0, out, "webdataset") == manifest
    original = open_source(data, 0)
    back = open_source(DataConfig(source="webdataset", path=out, image_size=28, channels=1), 5)
    for split in SPLITS:
        first, second = (concat([shard.read() for shard in of.shards(split)]) for of in (original, back))
        assert first.ids == second.ids
        np.testing.assert_array_equal(first.images, second.images)
        np.testing.assert_array_equal(first.labels, second.labels)
    with pytest.raises(UserError, match="another source or config"):
        preparing.prepare(data, 1, out, "webdataset")


def test_data_move_to_s3_and_a_bank_is_made_there(bucket: str, tmp_path: Path, refused: Refused) -> None:
    """The run is there too. Changed data are found by their checksums."""
    data, storage = images(tmp_path / "data", 40), f"{bucket}/runs"
    bank = [*HERE, "--stages", "bank"]
    train.main([*words(data, storage), *bank])
    before = read_inputs(Store.open(storage, "run"))
    filesystem, root = open_filesystem(f"{bucket}/data")
    copy(fs.LocalFileSystem(), str(data), filesystem, root)
    shutil.rmtree(data)
    train.main([*words(f"{bucket}/data", storage), *HERE, "--stages", "parse"])
    found = read_inputs(Store.open(storage, "run"))
    assert before is not None
    assert found is not None
    assert (found.root, found.digest) == (f"{bucket}/data", before.digest)
    filesystem.delete_file(f"{root}/class/5.bmp")
    line = refused(train.main, *words(f"{bucket}/data", storage), *HERE)
    assert f"the data of run {storage}/run changed: class/5.bmp" in line
