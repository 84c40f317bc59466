"""Settings of tiny runs, and a run folder of random parses."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pyarrow import fs

from npdraw_dist.config.schema import Experiment
from npdraw_dist.core.parts import PartSequence
from npdraw_dist.data.rows import Rows
from npdraw_dist.data.splits import Split
from npdraw_dist.pipeline.store import FOLDERS, Store, fingerprint_of
from tests.helpers.rows import Parsed, write_run

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

IN_PROCESS = ["--scale.num_workers", "0"]  # after TINY: the whole run in the process of the test, without Ray

# Files of random parses, by split.
ROWS: dict[Split, tuple[int, ...]] = {"train": (150, 30, 120), "valid": (40, 40), "test": (50,)}


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
    """A run folder that has only images and parses with random steps."""
    generator = torch.Generator().manual_seed(0)
    store = Store(fs.LocalFileSystem(), str(folder))
    count = 0
    splits: dict[Split, list[Parsed]] = {}
    for split, files in ROWS.items():
        for rows in files:
            z = PartSequence(
                torch.rand(rows, 36, generator=generator) < 0.5,
                torch.arange(36).expand(rows, -1),
                torch.randint(20, (rows, 36), generator=generator),
            )
            ids = [f"{i:04d}" for i in range(count, count + rows)]
            splits.setdefault(split, []).append(Parsed(Rows(ids, np.zeros((rows, 1, 28, 28), np.uint8)), z))
            count += rows
    write_run(store.filesystem, store.root, splits)
    for stage in ("data", "parse"):
        manifest = store.read_json(FOLDERS[stage], "manifest.json")
        store.write_manifest({**manifest, "fingerprint": fingerprint_of(tiny(), stage)}, FOLDERS[stage])
    return store
