"""Makes the picture of the cluster page: python -m docs.survivor OUT.png

Two workers train a prior on three nodes that this machine simulates, which needs Linux, root and iproute2.
A worker is killed, then a node is lost and another joins. The picture also shows a job without faults.
"""

import os
import signal
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from pyarrow import fs

from npdraw_dist.training.metrics_log import Record, read_metrics
from tests.helpers.cluster_job import Job, job_of, require_calm, workers
from tests.helpers.testbed import Testbed

IMAGES, EVERY = 98304, 4096
JOB = job_of(prior__images=IMAGES, train__eval_every_images=EVERY)
FAULTS = {IMAGES // 4: "worker killed", 5 * IMAGES // 8: "node lost, another joins"}  # images seen -> fault


def rows(run: Path) -> list[Record]:
    return read_metrics(fs.LocalFileSystem(), str(run / "prior"))


class Watch:
    """Runs a job that trains a prior, and notes the times of its validations and faults."""

    def __init__(self, bed: Testbed, folder: Path, name: str) -> None:
        self.bed, self.run = bed, folder / name
        words = [*JOB, "--storage", str(folder), "--name", name]
        self.seen: list[tuple[float, float]] = []
        self.faults: list[tuple[float, str]] = []
        self.job = Job(bed, folder / f"{name}.log", *words)

    def _images(self) -> float:
        """Returns the images seen at the newest validation, and notes the time if the validation is new."""
        done = rows(self.run)
        images = done[-1]["images_seen"] if done else 0.0
        if images and (not self.seen or self.seen[-1][1] != images):
            self.seen.append((time.monotonic(), images))
        return images

    def _ready(self, after: int) -> bool:
        return self._images() >= after and len(workers(self.bed)) >= 2

    def _fault(self, what: str) -> None:
        lost = {pid: number for pid, number in workers(self.bed).items() if number > 0}  # not on the head
        pid, number = next(iter(lost.items()))
        self.faults.append((time.monotonic(), what))
        if what.startswith("worker"):
            os.kill(pid, signal.SIGKILL)
        else:
            self.bed.kill_node(number)
            self.bed.add_node()

    def until_done(self, faults: dict[int, str]) -> None:
        for after, what in faults.items():
            self.job.until(partial(self._ready, after))
            self._fault(what)
        self.job.until(lambda: self._images() >= IMAGES)
        status, out = self.job.end()
        assert status == 0, out


def plot(runs: dict[str, Watch]) -> Figure:
    """Plots images trained against seconds, and the validation NLL against images trained."""
    figure = Figure((11, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    styles: list[dict[str, Any]] = [{"linewidth": 5, "color": "#bbbbbb"}, {"color": "#c0392b"}]
    for (name, run), style in zip(runs.items(), styles, strict=True):
        start = run.seen[0][0]
        left.plot([at - start for at, _ in run.seen], [images for _, images in run.seen], label=name, **style)
        table = rows(run.run)
        right.plot(
            [row["images_seen"] for row in table], [row["valid/nll"] for row in table], label=name, **style
        )
        for at, what in run.faults:
            before = max(images for when, images in run.seen if when <= at)
            left.plot([at - start], [before], "o", color="black")
            left.annotate(what, (at - start, before), (6, -12), textcoords="offset points")
    left.set(xlabel="seconds", ylabel="images trained (written checkpoints)")
    right.set(xlabel="images", ylabel="NLL on validation, nats", title="the same weights, byte by byte")
    left.legend()
    right.legend()
    return figure


def main(out: str) -> None:
    with tempfile.TemporaryDirectory() as temporary, Testbed(count=3) as bed:
        folder, runs = Path(temporary), {}
        for name, faults in (("without faults", {}), ("with faults", FAULTS)):
            runs[name] = Watch(bed, folder, name.replace(" ", "-"))
            runs[name].until_done(faults)
        require_calm(runs["with faults"].run, JOB)
        plot(runs).savefig(out, dpi=110)


if __name__ == "__main__":
    main(*sys.argv[1:])
