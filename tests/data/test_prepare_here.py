"""`prepare --scale.num_workers 0`: shards are written in this process, without Ray."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from npdraw_dist.config.schema import DataConfig
from npdraw_dist.data.sources import open_source
from npdraw_dist.data.splits import SPLITS
from tests.helpers.rows import concat

# An import of Ray fails.
WITHOUT_RAY = """
import sys
sys.modules["ray"] = None
from npdraw_dist import prepare
prepare.main(sys.argv[1:])
"""


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
