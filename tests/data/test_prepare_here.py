"""`prepare --scale.num_workers 0`: shards are written in this process, without Ray."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from npdraw_dist import prepare
from npdraw_dist.config.schema import DataConfig
from npdraw_dist.data.shards import open_source
from npdraw_dist.data.splits import SPLITS
from tests.helpers.rows import concat

# An import of Ray fails.
WITHOUT_RAY = """
import sys
sys.modules["ray"] = None
from npdraw_dist import prepare
prepare.main(sys.argv[1:])
"""


@pytest.mark.parametrize("form", ["parquet", "webdataset"])
def test_a_set_without_validation_images_has_them_held_out_by_each_seed(form: Any, tmp_path: Path) -> None:
    flags = ["--data.valid_fraction", "0", "--data.test_fraction", "0.2", "--scale.num_workers", "0"]
    prepare.main([*flags, "--format", form, "--out", str(tmp_path / "out")])
    stated = json.loads((tmp_path / "out" / "manifest.json").read_text())["splits"]
    made = DataConfig(source=form, path=str(tmp_path / "out"), image_size=28, channels=1)
    held = []
    for seed in (1, 2):
        source = open_source(made.model_copy(update={"valid_fraction": 0.3}), seed)
        train, valid, test = (
            {name for shard in source.shards(split) for name in shard.read().ids}
            for split in ("train", "valid", "test")
        )
        assert len(train | valid) == len(train) + len(valid) == stated["train"]
        assert 0.2 < len(valid) / stated["train"] < 0.4
        assert source.count("train") is source.count("valid") is None  # they are not listed
        assert len(test) == source.count("test") == stated["test"]
        held.append((valid, test))
    assert held[0][0] != held[1][0]
    assert held[0][1] == held[1][1]
    whole = open_source(made.model_copy(update={"valid_fraction": 0.0}), 0)
    assert [whole.count(split) for split in SPLITS] == [stated["train"], 0, stated["test"]]


def test_prepares_without_ray(tmp_path: Path) -> None:
    data = DataConfig(shard_rows=300, fraction=0.4)
    flags = ["--data.shard_rows", "300", "--data.fraction", "0.4", "--scale.num_workers", "0"]
    command = [sys.executable, "-c", WITHOUT_RAY, *flags, "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert f"{manifest['count']:,} images" in done.stdout
    made = DataConfig(source="parquet", path=str(tmp_path / "out"), image_size=28, channels=1)
    for split in SPLITS:
        before, after = (
            concat([shard.read() for shard in open_source(settings, 0).shards(split)])
            for settings in (data, made)
        )
        order = np.argsort(before.ids), np.argsort(after.ids)
        assert [before.ids[i] for i in order[0]] == [after.ids[i] for i in order[1]]
        np.testing.assert_array_equal(before.images[order[0]], after.images[order[1]])
