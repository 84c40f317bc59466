"""The source of the images that are scored, and the digest of the training images."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from npdraw_dist import prepare
from npdraw_dist.config.load import build
from npdraw_dist.config.schema import DataConfig
from npdraw_dist.data.splits import SPLITS
from npdraw_dist.pipeline import data as stage
from npdraw_dist.pipeline.inputs import open_images
from npdraw_dist.pipeline.store import Store
from tests.helpers.image_files import change_one, images
from tests.helpers.runs import IN_PROCESS


def run_on(folder: Path, split: str = "valid", **data: Any) -> tuple[Store, DataConfig]:
    """A run in `folder` that has read its images, and its data settings."""
    experiment = build({"data": data, "model": {"kind": "vae"}, "eval": {"split": split}})
    store = Store.open(str(folder), "run")
    store.claim(experiment)
    stage.run(experiment, store)
    return store, experiment.data


def test_images_that_the_run_has_read_are_scored_as_it_read_them(tmp_path: Path) -> None:
    source: dict[str, Any] = {
        "source": "imagefolder",
        "path": str(images(tmp_path / "data", 40)),
        "channels": 1,
    }
    store, data = run_on(tmp_path, image_size=8, **source)
    model, digest = store.path("model"), store.read_json("data", "manifest.json")["digests"]["train"]

    def opened(split: str, data: DataConfig = data, seed: int = 0) -> tuple[str | None, str | None]:
        """The folder of the canonical shards, if there is one, and the digest."""
        (name,) = (each for each in SPLITS if each == split)
        found, known = open_images(model, data, seed, name)
        return (None if found.canonical is None else found.canonical.root), known

    own = store.path("data")
    assert opened("valid", data.model_copy(update={"binarize": "threshold", "cache_mb": 1})) == (own, digest)
    assert opened("test") == (None, digest)  # not read yet, of the same files
    assert opened("valid", data.model_copy(update={"valid_fraction": 0.2})) == (None, None)
    assert opened("valid", seed=1) == (None, None)
    copy = str(shutil.copytree(tmp_path / "data", tmp_path / "copy"))
    assert opened("valid", data.model_copy(update={"path": copy})) == (None, None)
    change_one(tmp_path / "data")
    assert opened("test") == (None, None)
    assert opened("valid") == (own, digest)
    shutil.rmtree(tmp_path / "data")
    assert opened("valid") == (own, digest)


@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_a_prepared_set_states_its_digest_to_any_model(tmp_path: Path, fraction: float) -> None:
    """A run on a part of it has read other training images."""
    prepared = tmp_path / "prepared"
    prepare.main(["--data.source", "digits", "--data.fraction", "0.1", "--out", str(prepared), *IN_PROCESS])
    source = {"source": "parquet", "path": str(prepared), "image_size": 28, "channels": 1}
    store, data = run_on(tmp_path, "test", fraction=fraction, **source)
    known = [open_images(store.path("model"), data, 0, "test")[1]]
    known += [open_images(str(tmp_path / "alone"), DataConfig(**source), 0, "test")[1]]
    assert None not in known
    assert (known[0] == known[1]) == (fraction == 1)
