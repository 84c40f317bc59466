"""python -m tests.helpers.soak --seconds 3600 --seed 0: runs under random faults, compared with a calm run.

Run after run of the same command meets faults from a seeded bag until the time is up; a command that ends
early is given again. Each must end with the bytes of the calm run. Linux only. Faults of the disk need root.
With --nodes each run is a job on a test bed of so many nodes, whose GPUs Ray only pretends. Nodes are lost
too, and another job takes GPUs for some seconds.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pyarrow import fs

from npdraw_dist.training.metrics_log import read_metrics
from tests.helpers.processes import POLL_S, is_same, send, title
from tests.helpers.soak_runs import SETTINGS, JobRun, Run
from tests.helpers.testbed import Size, Testbed

DISK_MB = 64
RUN_LIMIT_S = 900.0  # a run that takes longer is stuck
REMOUNT_S = 5.0
GPUS = 2  # on each node; a worker takes one
NODE = Size(cpus=1, gpus=GPUS)
# Another job: address, GPUs and seconds. It ends if the GPUs are not free in time.
HOLD = """
import sys, time, ray
ray.init(address=sys.argv[1], log_to_driver=False)
hold = ray.remote(num_cpus=0, num_gpus=int(sys.argv[2]))(time.sleep)
ray.wait([hold.remote(int(sys.argv[3]))], timeout=3 * int(sys.argv[3]))
"""
PAUSE_S = (1.0, 8.0)  # between the first save after a fault and the next fault
TIMES = ("_s", "seconds", "_share")  # ends of the names of metrics that measure time


def log(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


# Faults: each returns what it did, or "" if there was nothing to hit.

Fault = Callable[[Run, random.Random], str]


def kill_a_worker(run: Run, rng: random.Random) -> str:
    found = run.workers("TrainWorker", "MapWorker")
    if not found:
        return ""
    pid, start = rng.choice(found)
    what = title(pid).split(".")[0].strip()
    send(pid, start, signal.SIGKILL)
    return f"{what} of pid {pid}"


def kill_the_driver(run: Run, rng: random.Random) -> str:
    return (pid := run.kill_driver()) and f"pid {pid}"


def lose_a_node(run: Run, rng: random.Random) -> str:
    """Kills a node, but not the head, without which the cluster ends. Another node joins."""
    if not isinstance(run, JobRun):
        return ""
    alive = [number for number, node in enumerate(run.testbed.nodes) if number and node.running()]
    lost = rng.choice(alive)
    run.testbed.kill_node(lost)
    return f"node {lost}, node {run.testbed.add_node(size=NODE)} joins"


def share_gpus(run: Run, rng: random.Random) -> str:
    """Another job takes GPUs as soon as they are free, and holds them for some seconds.

    A worker that dies meanwhile restarts when the GPUs are free again.
    """
    if not isinstance(run, JobRun):
        return ""
    gpus, seconds = rng.randint(1, GPUS), rng.randint(5, 30)
    words = [sys.executable, "-c", HOLD, run.testbed.address, str(gpus), str(seconds)]
    run.testbed.popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return f"{gpus} for {seconds} s, and killed {kill_a_worker(run, rng) or 'no worker'}"


def suspend_a_worker(run: Run, rng: random.Random) -> str:
    found = run.workers("TrainWorker")
    if not found:
        return ""
    pid, start = rng.choice(found)
    send(pid, start, signal.SIGSTOP)
    until = time.monotonic() + 3 * int(str(SETTINGS["scale.timeout_s"]))
    while is_same(pid, start) and time.monotonic() < until:
        time.sleep(POLL_S)
    replaced = "replaced" if not is_same(pid, start) else "not replaced, it goes on"
    send(pid, start, signal.SIGCONT)
    return f"pid {pid}, {replaced}"


def damage_the_newest_checkpoint(run: Run, rng: random.Random) -> str:
    """Damages the checkpoint of the present stage, then kills a worker, so that it is read."""
    if not (found := run.workers("TrainWorker")):
        return ""
    for stage in ("prior", "vae"):
        folder = run.folder / stage
        whole = sorted(path.parent for path in folder.glob("checkpoint_*/progress.json"))
        if not whole or (folder / "manifest.json").exists():
            continue
        pid, start = found[0]
        send(pid, start, signal.SIGSTOP)  # it must not write a newer one meanwhile
        with contextlib.suppress(OSError):
            content = bytearray((whole[-1] / "state.safetensors").read_bytes())
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
            (whole[-1] / "state.safetensors").write_bytes(content)
        send(pid, start, signal.SIGKILL)
        return f"{stage}/{whole[-1].name}, and killed pid {pid}"
    return ""


def fill_the_disk(run: Run, rng: random.Random) -> str:
    seconds, filler = rng.uniform(3, 20), run.folder.parent / "filler"
    try:
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(1 << 16))
        time.sleep(seconds)
    finally:
        filler.unlink()
    return f"for {seconds:.0f} s"


def refuse_writes(run: Run, rng: random.Random) -> str:
    """The disk turns read-only for some seconds, unless a file stays open for writing."""
    seconds, deadline = rng.uniform(2, 8), time.monotonic() + REMOUNT_S
    while not (done := remounted(run.folder.parent, "ro")) and time.monotonic() < deadline:
        time.sleep(0.01)
    try:
        time.sleep(seconds * done)
    finally:
        assert remounted(run.folder.parent, "rw")
    return f"for {seconds:.0f} s" if done else ""


def remounted(disk: Path, mode: str) -> bool:
    command = ["mount", "-o", f"remount,{mode}", str(disk)]
    return subprocess.run(command, capture_output=True).returncode == 0


FAULTS: list[Fault] = [kill_a_worker, kill_the_driver, suspend_a_worker, damage_the_newest_checkpoint]
OF_THE_DISK: list[Fault] = [fill_the_disk, refuse_writes]
OF_NODES: list[Fault] = [lose_a_node, share_gpus]


@contextlib.contextmanager
def own_disk(folder: Path) -> Iterator[bool]:
    """Makes the folder of the runs; yields whether it is a filesystem of its own."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "npdraw", str(folder)]
    own = os.geteuid() == 0 and subprocess.run(mount, capture_output=True).returncode == 0
    try:
        yield own
    finally:
        if own:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def content(run: Path) -> dict[str, str]:
    """The content that must be equal, by file: SHA-256 of weights, bank and parses; metrics without times."""
    files = [run / "bank" / "bank.safetensors", run / "model" / "model.safetensors"]
    files += sorted((run / "parses").rglob("*.parquet"))
    found = {str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    for stage in ("prior", "vae"):
        manifest = json.loads((run / stage / "manifest.json").read_text())
        state = run / stage / manifest["checkpoint"] / "state.safetensors"
        found[f"{stage} weights and moments"] = hashlib.sha256(state.read_bytes()).hexdigest()
        records = read_metrics(fs.LocalFileSystem(), str(run / stage))
        rows = [{key: value for key, value in row.items() if not key.endswith(TIMES)} for row in records]
        found[f"{stage}/metrics.jsonl"] = "\n".join(json.dumps(row, sort_keys=True) for row in rows)
    numbers = json.loads((run / "metrics.json").read_text())
    tested = {k: v for k, v in numbers.items() if k.startswith("test/") and not k.endswith(TIMES)}
    found["metrics.json"] = json.dumps(tested, sort_keys=True)
    return found


@dataclass
class Soak:
    """The record of a soak, and its next faults."""

    temporary: Path
    own_disk: bool
    rng: random.Random
    testbed: Testbed | None
    bag: list[Fault] = field(default_factory=list)
    happened: Counter[str] = field(default_factory=Counter)
    differences: list[str] = field(default_factory=list)
    unclear: list[str] = field(default_factory=list)
    commands = restarts = finished = 0

    def draw(self) -> Fault:
        """The next fault; each kind comes once before any comes again."""
        if not self.bag:
            self.bag = FAULTS + OF_THE_DISK * self.own_disk + OF_NODES * (self.testbed is not None)
            self.rng.shuffle(self.bag)
        return self.bag.pop()

    @contextlib.contextmanager
    def run(self, name: str) -> Iterator[Run]:
        """A run that has begun; it is stopped and removed in the end."""
        where = self.temporary / "disk", name, self.temporary
        run = Run(*where) if self.testbed is None else JobRun(*where, self.testbed)
        try:
            run.start()
            yield run
        finally:
            run.stop()
            shutil.rmtree(run.folder, ignore_errors=True)

    def calm(self) -> dict[str, str]:
        with self.run("calm") as run:
            assert run.driver is not None
            assert run.driver.wait(RUN_LIMIT_S) == 0, run.text()
            return content(run.folder)

    def one_run(self, calm: dict[str, str]) -> None:
        """A run that meets two to five faults, compared with the calm one."""
        name = f"run{self.finished}"
        self.finished += 1
        log(f"{name} begins")
        with self.run(name) as run:
            began = time.monotonic()
            left, pause, struck_at = self.rng.randint(2, 5), self.rng.uniform(*PAUSE_S), 0.0
            due: float | None = None  # None until something is saved after the last fault
            while run.goes_on():
                if time.monotonic() - began > RUN_LIMIT_S:
                    log(f"{name} is stuck: {run.text()[-6000:]}")
                    self.unclear.append(f"{name} is stuck")
                    return
                time.sleep(POLL_S)
                if due is None:
                    due = time.monotonic() + pause if run.saved_at() > struck_at else None
                elif left and time.monotonic() > due and self._strike(run):
                    left, pause, due = left - 1, self.rng.uniform(*PAUSE_S), None
                    struck_at = time.time()
            self._compare(name, run, calm)

    def _strike(self, run: Run) -> bool:
        """Injects a fault. If it finds nothing to hit, it goes back into the bag; the result is False."""
        fault = self.draw()
        name = fault.__name__.replace("_", " ")
        if not (what := fault(run, self.rng)):
            self.bag.insert(0, fault)
            return False
        self.happened[name] += 1
        log(f"  {name}: {what}")
        return True

    def _compare(self, name: str, run: Run, calm: dict[str, str]) -> None:
        found = content(run.folder)
        other = sorted(key for key in calm.keys() | found.keys() if calm.get(key) != found.get(key))
        self.differences += [f"{name}: {key}" for key in other]
        text = run.text()
        self.unclear += [f"{name}: {line}" for line in text.splitlines() if line.startswith("Traceback")]
        self.restarts += text.count("resumes from checkpoint_")
        self.commands += run.commands
        ends = f"differs: {', '.join(other)}" if other else "equal"
        log(f"{name} ends after {run.commands} commands: {ends}")
        if other or self.unclear:
            log(text[-6000:])

    def report(self) -> bool:
        """Prints the record. True if all runs equal the calm one and none is unclear."""
        for name, count in sorted(self.happened.items()):
            print(f"{count:5d} x {name}")
        faults, restarts = sum(self.happened.values()), f"{self.restarts} resumes from a checkpoint"
        print(f"{self.finished} runs, {self.commands} commands, {faults} faults, {restarts}")
        print(f"tracebacks and stuck runs: {self.unclear or 'none'}")
        print("all equal to the calm run" if not self.differences else f"NOT EQUAL: {self.differences}")
        return not self.differences and not self.unclear


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3600, help="no run begins later")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--nodes",
        type=int,
        default=0,
        help="number of nodes of a test bed; 0: this machine without a test bed",
    )
    options = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # the cleanup runs
    until = time.monotonic() + options.seconds
    with contextlib.ExitStack() as cleanup:
        # Short: it holds Unix sockets.
        folder = Path(tempfile.mkdtemp(prefix="soak", dir="/tmp"))
        cleanup.callback(shutil.rmtree, folder, ignore_errors=True)
        own = cleanup.enter_context(own_disk(folder / "disk"))
        if not own:
            log("no disk of its own can be mounted here: no faults of the disk")
        testbed = cleanup.enter_context(Testbed(sizes=[NODE] * options.nodes)) if options.nodes else None
        soak = Soak(folder, own, random.Random(options.seed), testbed)
        began = time.monotonic()
        calm = soak.calm()
        log(f"the calm run took {time.monotonic() - began:.0f} s")
        while soak.finished == 0 or time.monotonic() < until:
            soak.one_run(calm)
        return 0 if soak.report() else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
