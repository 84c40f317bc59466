"""The steps of `cluster.first_gpu`: which command each runs, how long it may take, and what is kept of it."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).resolve().parents[1]
RUN = "first_gpu"  # name of the training run
GRACE_S = 60  # a command that is told to stop has this long
WHOLE_S = 420  # of a step that takes most of a call
PRIOR_S, VAE_S = 120, 420  # of training, at the rate of the bench
LARGE = 4096  # images of a batch that fills a GPU, in two micro-batches
LARGE_FLAGS = ("--train.batch_size", str(LARGE), "--train.micro_batch", str(LARGE // 2))

Status = Literal["done", "failed", "unfinished"]
Figures = dict[str, float | str | None]
Found = tuple[Status, Figures, str]

# Networks for a CPU, and for the shortest training.
SMALL = [
    *("--bank.size", "20", "--prior.depth", "1", "--prior.width", "16", "--prior.attention_heads", "2"),
    *("--vae.encoder_width", "16", "--vae.decoder_width", "16"),
]


@dataclass(frozen=True)
class Outcome:
    """Of a step, over all its calls. note: why it failed, or is not done. commands: of the last call."""

    status: Status
    calls: int
    seconds: float
    note: str
    figures: Figures
    commands: list[str] = field(default_factory=list)


@dataclass
class World:
    """What a step works with. outcomes: of the steps before it."""

    data: str
    source: str
    out: Path
    small: bool
    outcomes: Mapping[str, Outcome]
    step: str
    commands: list[str] = field(default_factory=list)

    @property
    def data_flags(self) -> list[str]:
        """Preset and data."""
        if self.data == "digits":
            return ["--preset", "digits"]
        return ["--preset", "mnist", "--data.source", self.source, "--data.path", self.data]

    def call(self, argv: Sequence[str], limit_s: float) -> tuple[int | None, str]:
        """Exit status and output of `python ARGV` in the repository; None if it was stopped by its limit.

        It is stopped as by Ctrl-C. The output is also added to logs/STEP.log.
        """
        self.commands.append(" ".join(["python", *argv]))
        logs = self.out / "logs"
        logs.mkdir(exist_ok=True)
        log = logs / f"{self.step}.log"
        before = log.stat().st_size if log.exists() else 0
        environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
        with log.open("a") as file:
            process = subprocess.Popen(
                [sys.executable, *argv],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            stopped = not _ended(process, limit_s)
        output = log.read_bytes()[before:].decode(errors="replace")
        return (None if stopped else process.returncode), output


def _ended(process: subprocess.Popen[bytes], limit_s: float) -> bool:
    """Waits; False if the process had to be stopped. Also if this process is stopped, the other one is."""
    try:
        process.wait(limit_s)
        return True
    except subprocess.TimeoutExpired:
        return False
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)  # its own session
                process.wait()


def last_line(output: str) -> str:
    return (output.strip().splitlines() or ["no output"])[-1].strip()


def judged(status: int | None, output: str, figures: Figures, limit_s: float) -> Found:
    """The outcome of a command that must end well."""
    if status is None:
        return "failed", figures, f"stopped after {limit_s:.0f} s"
    return ("done", figures, "") if status == 0 else ("failed", figures, last_line(output))


# What this machine is; none of it needs the project's own code to work.
ASK = """
import json, platform, subprocess, torch
found = {"card": None, "torch": torch.__version__, "cuda": torch.version.cuda}
found["system"] = platform.platform(terse=True)
if torch.cuda.is_available():
    card = torch.cuda.get_device_properties(0)
    found |= {"card": card.name, "card_memory_gb": round(card.total_memory / 1e9, 1)}
    found |= {"capability": f"{card.major}.{card.minor}", "multiprocessors": card.multi_processor_count}
    found["cards"] = torch.cuda.device_count()
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        found["driver"] = subprocess.run(query, capture_output=True, text=True).stdout.split("\\n")[0]
    except OSError:
        found["driver"] = None
print(json.dumps(found))
"""


def machine(world: World, limit_s: float) -> Found:
    status, output = world.call(["-c", ASK], limit_s)
    figures = json.loads(last_line(output)) if status == 0 else {}
    world.commands[:] = ["python -c ..."]
    if status == 0 and figures["card"] is None and not world.small:
        return "failed", figures, "torch finds no GPU; --small needs none"
    return judged(status, output, figures, limit_s)


def tests(world: World, limit_s: float) -> Found:
    """The tests that need a GPU; without one they are skipped."""
    where = "tests/training/test_device.py" if world.small else "tests"
    argv = ["-m", "pytest", "-q", "-m", "gpu", "-rs", "-p", "no:cacheprovider", where]
    status, output = world.call(argv, limit_s)
    counted = dict.fromkeys(("passed", "failed", "skipped"), 0.0)
    for count, name in re.findall(r"(\d+) (passed|failed|skipped)", last_line(output)):
        counted[name] = float(count)
    return judged(status, output, {f"gpu_tests_{name}": n for name, n in counted.items()}, limit_s)


def bench(name: str, sections: str, *flags: str) -> Callable[[World, float], Found]:
    """A step of the bench with these sections."""

    def run(world: World, limit_s: float) -> Found:
        file = world.out / f"{name}.json"
        argv = ["-m", "npdraw_dist.bench", *world.data_flags, "--only", sections, "--against", "none"]
        small = ["--quick", *SMALL, "--train.batch_size", "16", "--train.micro_batch", "8"]
        argv += small if world.small else flags
        status, output = world.call([*argv, "--out", str(file)], limit_s)
        figures = json.loads(file.read_text()) if status == 0 else {}
        return judged(status, output, figures, limit_s)

    return run


def budget(world: World, stage: str, seconds: float) -> int:
    """Images of a stage that trains for some `seconds` at the rate of the bench; in whole thousands."""
    measured = world.outcomes.get("bench")
    rate = None if measured is None else measured.figures.get(f"{stage}_step_images_per_s")
    images = seconds * rate if isinstance(rate, float) else 200_000
    return max(int(images / 1000), 1) * 1000


def training_flags(world: World) -> list[str]:
    """Of the run, the same in every call: the first one writes them down."""
    file = world.out / "steps" / "train.flags.json"
    if file.exists():
        return list(json.loads(file.read_text()))
    if world.small:
        images = ["--prior.images", "320", "--vae.images", "320", "--train.eval_every_images", "160"]
        sizes = ["--train.batch_size", "32", "--train.micro_batch", "16", "--eval.images", "32"]
        flags = [*SMALL, *images, *sizes, "--scale.num_workers", "1"]
    else:
        prior, vae = budget(world, "prior", PRIOR_S), budget(world, "vae", VAE_S)
        flags = ["--prior.images", str(min(prior, 600_000)), "--vae.images", str(min(vae, 1_200_000))]
        flags += ["--train.eval_every_images", str(max(min(prior, vae) // 8, 1000))]
        flags += ["--scale.num_workers", "1"]
    file.write_text(json.dumps(flags))
    return flags


def train(world: World, limit_s: float) -> Found:
    """The preset, stopped as by Ctrl-C when the time is up, and resumed by the next call."""
    argv = ["-m", "npdraw_dist.train", *world.data_flags, *training_flags(world)]
    argv += ["--storage", str(world.out / "runs"), "--name", RUN]
    status, output = world.call(argv, limit_s - GRACE_S / 2)
    if status is None:
        return "unfinished", {}, "stopped by its limit; the next call resumes it"
    metrics = world.out / "runs" / RUN / "metrics.json"
    figures = json.loads(metrics.read_text()) if status == 0 else {}
    figures = {name: value for name, value in figures.items() if isinstance(value, int | float)}
    resumed = len(re.findall(r"resumes from", output))
    return judged(status, output, {**figures, "resumed_from_checkpoints": float(resumed)}, limit_s)


def sample(world: World, limit_s: float) -> Found:
    """Pictures of the trained model, by the command."""
    model = world.out / "runs" / RUN / "model"
    argv = ["-m", "npdraw_dist.sample", "--model", str(model), "--out", str(world.out / "samples")]
    status, output = world.call([*argv, "--n", "16" if world.small else "64"], limit_s)
    return judged(status, output, {}, limit_s)


@dataclass(frozen=True)
class Step:
    """run(world, limit_s): one call. needs_s: a call with less time left does not begin it."""

    name: str
    title: str
    run: Callable[[World, float], Found]
    needs_s: float
    most_s: float


def _whole(name: str, title: str, run: Callable[[World, float], Found], limit_s: float) -> Step:
    return Step(name, title, run, limit_s, limit_s)


STEPS = [
    _whole("machine", "The card and its software", machine, 60),
    _whole("tests", "The tests that need a GPU", tests, 240),
    _whole("bench", "The bench at the preset's sizes", bench("bench", "step,kernels,drawing,parse"), 400),
    _whole(
        "bench_large",
        f"A training step of {LARGE // 2} images at once",
        bench("bench_large", "step", *LARGE_FLAGS),
        240,
    ),
    _whole("compile", "train.compile, with CUDA graphs", bench("compile", "compile"), WHOLE_S),
    _whole("kmeans", "K-means on the GPU and on the CPU", bench("kmeans", "bank"), WHOLE_S),
    Step("train", "The preset, trained for some ten minutes in two calls or more", train, 150, 300),
    _whole("sample", "Samples of it", sample, 120),
    _whole("editor", "The editor's API under load", bench("editor", "serve"), 300),
]
