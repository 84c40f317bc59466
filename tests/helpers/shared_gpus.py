"""python -m tests.helpers.shared_gpus --runs 10: elastic runs beside another user of eight pretended GPUs.

The other user takes and releases two to six GPUs at random. Each run has to end with its budget,
and with the validation of a calm run up to noise.
"""

import argparse
import hashlib
import json
import os
import random
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

from npdraw_dist import train
from npdraw_dist.config.schema import ScaleConfig
from npdraw_dist.distributed import elastic
from npdraw_dist.distributed.start import start_ray
from tests.helpers.runs import TINY

GPUS = 8
HELD_S = (5, 40)  # seconds for which the other user holds or leaves GPUs
EVERY = 2048  # images between validations, each with a checkpoint


@ray.remote(num_cpus=0)  # type: ignore[untyped-decorator]
class Holder:
    """An actor of the other user."""

    def ready(self) -> None: ...


@contextmanager
def other_user(rng: random.Random, said: list[str]) -> Iterator[None]:
    """In its block, takes two to six GPUs again and again, as soon as they are free, and releases them."""
    ended = threading.Event()

    def use() -> None:
        while not ended.is_set():
            gpus, seconds = rng.randint(2, 6), rng.uniform(*HELD_S)
            holder = Holder.options(num_gpus=gpus).remote()  # type: ignore[attr-defined]
            ready = holder.ready.remote()
            while not ended.is_set() and not ray.wait([ready], timeout=1)[0]:
                pass
            said.append(f"{gpus} for {seconds:.0f} s")
            ended.wait(seconds)
            ray.kill(holder)
            ended.wait(rng.uniform(*HELD_S))

    thread = threading.Thread(target=use)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def run(storage: Path, name: str, images: int, workers: str) -> dict[str, Any]:
    """Trains a prior; returns its last validation, the number of images, and the hash of its weights."""
    own = ["--storage", str(storage), "--name", name, *TINY, "--stages", "data,bank,parse,prior"]
    own += ["--scale.num_workers", workers, "--scale.cpus_per_worker", "1", "--prior.images", str(images)]
    began = time.monotonic()
    train.main([*own, "--train.eval_every_images", str(EVERY)])
    folder = storage / name / "prior"
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["images_seen"] for row in rows] == list(range(EVERY, images + 1, EVERY)), rows
    manifest = json.loads((folder / "manifest.json").read_text())
    state = (folder / manifest["checkpoint"] / "state.safetensors").read_bytes()
    return {
        "nll": rows[-1]["valid/nll"],
        "images": rows[-1]["images_seen"],
        "sha256": hashlib.sha256(state).hexdigest()[:12],
        "seconds": round(time.monotonic() - began),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--images", type=int, default=262144, help="budget of each run")
    options = parser.parse_args()
    os.environ["RAY_OVERRIDE_RESOURCES"] = json.dumps({"CPU": GPUS, "GPU": GPUS})
    start_ray(ScaleConfig(), object_store_mb=128)
    elastic.LOOK_S = 5.0  # not a minute, so that short runs grow too
    with tempfile.TemporaryDirectory() as folder:
        storage = Path(folder)
        calm = run(storage, "calm", options.images, "2")
        print(f"calm: {calm}", flush=True)
        for number in range(options.runs):
            said: list[str] = []
            with other_user(random.Random(number), said):
                found = run(storage, f"run{number}", options.images, f"1:{GPUS}")
            print(f"run {number}: {found}, the other user took {'; '.join(said)}", flush=True)
            assert found["images"] == options.images
            assert abs(found["nll"] - calm["nll"]) < 0.05 * calm["nll"]
    ray.shutdown()
    print(f"{options.runs} of {options.runs} runs ended with their budget")


if __name__ == "__main__":
    main()
