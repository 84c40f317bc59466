"""A run whose command is repeated until it is done, on this machine or as a job on a test bed."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.helpers import runs
from tests.helpers.processes import family, kill_all, known, send, title
from tests.helpers.testbed import Testbed

ROOT = Path(__file__).parents[2]
SETTINGS = runs.SETTINGS | {
    "data.fraction": 1,
    "data.shard_rows": 60,
    "prior.images": 24576,
    "vae.images": 12288,
    "train.eval_every_images": 1024,
    "scale.num_workers": 2,
    "scale.cpus_per_worker": 1,
    "scale.timeout_s": 15,
}


class Run:
    """A run of the pipeline in `folder`. Its command is repeated whenever it ends before the run is done."""

    def __init__(self, storage: Path, name: str, temporary: Path) -> None:
        self.folder, self.log = storage / name, temporary / f"{name}.log"
        self.command = [sys.executable, "-m", "npdraw_dist.train", "--storage", str(storage), "--name", name]
        self.command += [word for key, value in SETTINGS.items() for word in (f"--{key}", str(value))]
        kept = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
        self.env = {**kept, "RAY_TMPDIR": str(temporary / "r"), "TMPDIR": str(temporary)}
        self.seen: dict[int, str] = {}
        self.commands = 0
        self.driver: subprocess.Popen[str] | None = None

    def start(self) -> None:
        self.commands += 1
        with self.log.open("a") as out:
            self.driver = subprocess.Popen(
                self.command,
                cwd=ROOT,
                env=self.env,
                stdout=out,
                stderr=out,
                start_new_session=True,
                text=True,
            )

    def processes(self) -> dict[int, str]:
        """The processes that the command has started, with their start times."""
        return {} if self.driver is None else family(self.driver.pid)

    def kill_driver(self) -> str:
        """Kills the process that drives the run; returns its pid."""
        assert self.driver is not None
        self.seen |= self.processes()
        self.driver.kill()
        self.driver.wait()
        return str(self.driver.pid)

    def goes_on(self) -> bool:
        """False once the run is done. Repeats the command if it ended early."""
        assert self.driver is not None
        self.seen |= self.processes()
        status = self.driver.poll()
        if status is None:
            return True
        kill_all(self.seen)  # what a killed driver leaves ends by itself, but later
        self.seen = {}
        if status == 0:
            return False
        if status != -signal.SIGKILL:
            print(f"  the command ended with status {status}: {self.tail()}", flush=True)
        self.start()
        return True

    def workers(self, *kinds: str) -> list[tuple[int, str]]:
        """pid and start time of Ray's workers that do work of these kinds, oldest first."""
        found = self.processes()
        titles = {pid: title(pid) for pid in found}
        mine = [pid for pid, words in titles.items() if words.startswith("ray::")]
        return [(pid, found[pid]) for pid in sorted(mine) if any(kind in titles[pid] for kind in kinds)]

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def tail(self) -> str:
        return self.text().strip().rpartition("\n")[2]

    def saved_at(self) -> float:
        """When the newest shard, checkpoint or manifest was written, in Unix time; 0 if there is none."""
        patterns = ("*/checkpoint_*/progress.json", "parses/*/*.parquet", "*/manifest.json")
        newest = 0.0
        for path in (path for pattern in patterns for path in self.folder.glob(pattern)):
            with contextlib.suppress(FileNotFoundError):
                newest = max(newest, path.stat().st_mtime)
        return newest

    def stop(self) -> None:
        if self.driver is not None:
            self.seen |= self.processes()
            kill_all(self.seen)
            self.driver.wait()


class JobRun(Run):
    """The same as a job on a test bed, whose nodes outlive it."""

    def __init__(self, storage: Path, name: str, temporary: Path, testbed: Testbed) -> None:
        super().__init__(storage, name, temporary)
        self.testbed = testbed

    def start(self) -> None:
        self.commands += 1
        with self.log.open("a") as out:
            environment = ROOT / "cluster" / "runtime_env.yaml"
            self.driver = self.testbed.submit(["python", *self.command[1:]], ROOT, environment, output=out)

    def processes(self) -> dict[int, str]:
        network, nodes = self.testbed.network, self.testbed.nodes
        return known(pid for number, node in enumerate(nodes) for pid in network.pids(number, node.running()))

    def kill_driver(self) -> str:
        ours = f"--name {self.folder.name} "
        for pid, start in self.processes().items():
            words = title(pid)
            before, driver, _ = words.partition("-m npdraw_dist.train")
            # Neither the job's shell, which starts the driver, nor the command that submits the job.
            if driver and ours in words and " -c " not in before and " job submit " not in before:
                send(pid, start, signal.SIGKILL)
                return str(pid)
        return ""

    def goes_on(self) -> bool:
        assert self.driver is not None
        status = self.driver.poll()
        if status:
            print(f"  the job ended: {self.tail()}", flush=True)
            self.start()
        return status != 0

    def stop(self) -> None:
        """The job ends with the test bed; its nodes stay."""
        if self.driver is not None and self.driver.poll() is None:
            self.kill_driver()
            self.driver.kill()
