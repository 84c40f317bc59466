"""Settings of tiny runs, and a run folder of random parses."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pyarrow import fs

from npdraw_dist.config.schema import Experiment
from npdraw_dist.core.parts import PartSequence
from npdraw_dist.core.storage import write_bytes
from npdraw_dist.data.parquet import to_parquet
from npdraw_dist.data.rows import Rows
from npdraw_dist.pipeline.store import Store, fingerprint_of
from tests.helpers.rows import list_parses

Refused = Callable[..., str]

# The smallest budget that still checkpoints twice a stage: 4 steps each.
SETTINGS = {
    "bank.size": 20,
    "prior.images": 512,
    "prior.width": 16,
    "prior.depth": 1,
    "prior.attention_heads": 2,
    "vae.images": 512,
    "vae.encoder_width": 16,
    "vae.decoder_width": 16,
    "eval.images": 32,
    "eval.k": 5,
    "data.fraction": 0.3,
    "train.batch_size": 128,
    "train.micro_batch": 64,
    "train.eval_every_images": 256,
    "scale.num_workers": 1,
}
TINY = [word for key, value in SETTINGS.items() for word in (f"--{key}", str(value))]

HERE = ["--scale.num_workers", "0"]  # after TINY: the whole run in the process of the test, without Ray

# Files of random parses, by split.
ROWS = {"train": (150, 30, 120), "valid": (40, 40), "test": (50,)}


def tiny(**data: Any) -> Experiment:
    """SETTINGS, with a checkpoint after each two of the 4 steps: an epoch is 2.3 of them.

    Parses alone train its prior, which looks at no part.
    """
    sections: dict[str, dict[str, Any]] = {"data": data, "prior": {"table": "joint"}}
    for name, value in SETTINGS.items():
        section, key = name.split(".")
        sections.setdefault(section, {})[key] = value
    return Experiment.model_validate(sections)


def random_parses(folder: Path) -> Store:
    """A run folder with parses only, of random steps."""
    generator = torch.Generator().manual_seed(0)
    store = Store(fs.LocalFileSystem(), str(folder))
    count = 0
    for split, files in ROWS.items():
        for number, rows in enumerate(files):
            z = PartSequence(
                torch.rand(rows, 36, generator=generator) < 0.5,
                torch.arange(36).expand(rows, -1),
                torch.randint(20, (rows, 36), generator=generator),
            )
            ids = [f"{i:04d}" for i in range(count, count + rows)]
            images = np.zeros((rows, 1, 28, 28), np.uint8)
            path = store.path("parses", split, f"{split}-{number:05d}.parquet")
            content = to_parquet(Rows(ids, images), z, np.zeros(rows, np.float32))
            write_bytes(fs.LocalFileSystem(), path, content)
            count += rows
    list_parses(store.filesystem, store.path("parses"))
    store.write_manifest({"fingerprint": fingerprint_of(tiny(), "parse")}, "parses")
    return store
