"""Runs in this process, without Ray. test_pipeline.py compares one of them with a run on Ray."""

import hashlib
import json
import math
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyarrow import fs
from safetensors.torch import load_file, save_file

from npdraw_dist import train
from npdraw_dist.baselines.vqvae import VQVAE
from npdraw_dist.config.load import resolve, with_changes
from npdraw_dist.config.schema import Experiment, ScaleConfig
from npdraw_dist.distributed.start import placed
from npdraw_dist.distributed.tasks import AT_ONCE, map_items
from npdraw_dist.pipeline import prior
from npdraw_dist.pipeline.stage_job import CRITERIA
from npdraw_dist.pipeline.store import Store
from npdraw_dist.pipeline.train_stage import STOPPED, keep_stopped, selected_checkpoint
from npdraw_dist.pipeline.trained_models import load_npdraw
from npdraw_dist.system.errors import UserError
from npdraw_dist.system.lease import Lease
from npdraw_dist.training.checkpoint import KEPT
from npdraw_dist.training.context import RunContext, run_in_process
from npdraw_dist.training.loop import Run
from npdraw_dist.training.metrics_log import RECENT_ROWS, read_metrics
from tests.helpers.in_process import Stopped
from tests.helpers.runs import IN_PROCESS, TINY, random_parses, tiny
from tests.helpers.tiny_fit import SMALL, strokes
from tests.test_architecture import OF_EXTRAS

# Python without what the extras install: to import it fails.
WITHOUT_EXTRAS = """
import sys
sys.modules |= dict.fromkeys(sys.argv.pop(1).split(","))
import numpy as np
import npdraw_dist
from npdraw_dist import prepare, train
folder, settings, *words = sys.argv[1:]
prepare.main([*words[-4:], "--out", f"{folder}/prepared"])
train.main(["--storage", folder, "--name", "command", "--stages", "data,bank,parse", *words])
model = npdraw_dist.fit(np.load(f"{folder}/images.npy"), name="here", storage=folder, **eval(settings))
print(type(model).__name__, tuple(model.sample(2).shape))
print("imported:", *sorted({"sklearn"} & sys.modules.keys()))
"""


def experiment(**changes: Any) -> Experiment:
    return with_changes(tiny(), {"scale": {"num_workers": 0}}, changes)


def test_a_whole_run_and_the_commands_before_it_need_no_extra(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", strokes())
    words = [str(tmp_path), repr(SMALL), *TINY, *IN_PROCESS, "--data.fraction", "0.05"]
    others = OF_EXTRAS.keys() - {"fontTools"}  # which matplotlib needs, too
    command = [sys.executable, "-c", WITHOUT_EXTRAS, ",".join(others), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "prepared" / "manifest.json").is_file()
    assert (tmp_path / "command" / "parses" / "manifest.json").is_file()
    assert "NPDraw (2, 1, 12, 12)" in done.stdout
    assert "imported:\n" in done.stdout  # what takes as long to import as torch, for little
    run = tmp_path / "here"
    names = {path.name for path in run.iterdir()}
    assert {"bank", "parses", "prior", "vae", "model", "metrics.json", "samples.png"} <= names
    for stage in ("prior", "vae"):
        assert len(list((run / stage).glob("checkpoint_*/state.safetensors"))) == 2
        assert len(list((run / stage).glob("events.out.tfevents.*"))) == 2  # settings, and one start
        assert json.loads((run / stage / "manifest.json").read_text())["images_per_s"] > 0


DRAW = """
import sys
sys.modules |= dict.fromkeys(sys.argv[1].split(","))
import npdraw_dist
model = npdraw_dist.load("emoji")
print(npdraw_dist.to_pil(model.draw(1, condition="cat face", seed=0).images)[0].size)
"""


def test_a_first_drawing_imports_nothing_that_it_does_not_need() -> None:
    """Each of these takes seconds to install or to import, or comes with an extra."""
    slow = {"matplotlib", "pandas", "pyarrow", "rich", "scipy", "sklearn", "tensorboardX", "tokenizers"}
    command = [sys.executable, "-c", DRAW, ",".join(slow | set(OF_EXTRAS))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == "(32, 32)\n"


@pytest.mark.parametrize("preset", ["emoji", "mnist_cpu"])  # of one worker, and of one or two
def test_without_ray_one_worker_becomes_this_process(
    preset: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert placed(resolve(preset, None, {}).scale).in_process
    assert capsys.readouterr().err.count("Ray is not installed, so this process does all the work") == 1


def test_the_default_command_trains_in_this_process_unless_a_cluster_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`ray job submit` sets RAY_ADDRESS."""

    def begin(found: Experiment, *_: Any) -> None:
        raise Stopped(found.scale.num_workers)

    monkeypatch.setattr("npdraw_dist.pipeline.run.unfinished", begin)
    monkeypatch.setattr("npdraw_dist.distributed.start.ray_runs", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for name, workers in (("here", "0"), ("there", "1:2")):
        with pytest.raises(Stopped, match=f"^{workers}$"):
            train.main(["--storage", str(tmp_path), "--name", name])
        monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")


@pytest.mark.parametrize("cache_mb", [1024, 0])
def test_a_killed_stage_goes_on_at_its_last_checkpoint(
    cache_mb: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In memory and streamed."""
    own = experiment(data={"cache_mb": cache_mb})
    whole, killed = random_parses(tmp_path / "whole"), random_parses(tmp_path / "killed")
    manifest = prior.run(own, whole)
    original = Run.update

    def die_at_three(self: Run, step: int, *rest: Any) -> None:
        if step == 3:
            raise Stopped
        original(self, step, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "update", die_at_three)
        with pytest.raises(Stopped):
            prior.run(own, killed)
    Path(killed.path("prior", ".checkpoint-half")).mkdir()
    again = prior.run(own, killed)
    printed = capsys.readouterr().out
    assert "prior: resumes from checkpoint_000000002" in printed
    assert ("are streamed" in printed) == (cache_mb == 0)
    assert again["valid_nll"] == manifest["valid_nll"]
    states = [
        Path(store.path("prior", manifest["checkpoint"], "state.safetensors")) for store in (whole, killed)
    ]
    assert states[0].read_bytes() == states[1].read_bytes()
    assert not list(Path(killed.path("prior")).glob(".checkpoint-*"))
    recent = [read_metrics(store.filesystem, store.path("prior"), RECENT_ROWS) for store in (whole, killed)]
    losses = [[row["recent/loss"] for row in found] for found in recent]
    assert losses[0] == losses[1]


def test_the_best_checkpoints_and_the_last_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("npdraw_dist.training.loop.RATE_FALL", 0.0)  # the last weights are to be bad
    own_prior = {"images": 1024, "learning_rate": 1.0}
    own = experiment(prior=own_prior, train={"eval_every_images": 128, "patience": 0})
    store = random_parses(tmp_path)
    manifest = prior.run(own, store)
    rows = read_metrics(store.filesystem, store.path("prior"))
    assert len(rows) == 8
    best = sorted(rows, key=lambda row: row["valid/nll"])[:KEPT]
    assert rows[-1] not in best  # training gets worse here
    kept = {path.name for path in (tmp_path / "prior").glob("checkpoint_0*")}
    assert kept == {f"checkpoint_{int(row['step']):09d}" for row in [*best, rows[-1]]}
    assert manifest["checkpoint"] == f"checkpoint_{int(best[0]['step']):09d}"


def test_a_finished_training_is_taken_up_and_a_damaged_checkpoint_left_aside(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = random_parses(tmp_path)
    before = prior.run(experiment(), store)
    rows = read_metrics(store.filesystem, store.path("prior"))
    # The driver died between the last checkpoint and the manifest: all figures stay.
    (tmp_path / "prior" / "manifest.json").unlink()
    after = prior.run(experiment(), store)
    for name in ("images", "images_per_s", "first_step_at", "checkpoint"):
        assert after[name] == before[name], name
    last = tmp_path / "prior" / "checkpoint_000000004"
    assert after["seconds"] > json.loads((last / "progress.json").read_text())["clock"]["seconds"] > 0
    assert read_metrics(store.filesystem, store.path("prior")) == rows
    # It is said, else `last` would pass on older weights in silence.
    (last / "state.safetensors").write_bytes((last / "state.safetensors").read_bytes()[:-1])
    capsys.readouterr()
    assert selected_checkpoint(store, "prior", "last").path.endswith("checkpoint_000000002")
    assert "prior: a damaged checkpoint is not used: " in capsys.readouterr().out
    (tmp_path / "prior" / "manifest.json").unlink()
    again = prior.run(experiment(), store)
    printed = capsys.readouterr().out
    assert "prior: a damaged checkpoint is not used: " in printed
    assert "prior: resumes from checkpoint_000000002" in printed
    assert again["valid_nll"] == before["valid_nll"]
    assert again["checkpoint"] == "checkpoint_000000004_1"  # the damaged one keeps its name


def test_another_process_that_trains_the_run_is_waited_for(tmp_path: Path) -> None:
    store = random_parses(tmp_path)
    quick = experiment(scale={"timeout_s": 1})
    with (
        Lease(store.filesystem, store.path("prior"), "stage prior"),
        pytest.raises(UserError, match="is in use by"),
    ):
        prior.run(quick, store)


@pytest.mark.parametrize(
    ("steps", "said"),
    [(4, "non-finite, and its weights are of no use"), (40, "non-finite too often, at last at step 1")],
)
def test_a_loss_that_is_not_finite_is_reported(steps: int, said: str, tmp_path: Path) -> None:
    store = random_parses(tmp_path)
    images = steps * experiment().train.batch_size
    broken = experiment(prior={"learning_rate": 1e30, "images": images, "plain_images": 0})
    with pytest.raises(UserError, match=f"the loss of stage prior turned {said}.*no checkpoint has finite"):
        prior.run(broken, store)
    assert not store.has(STOPPED)


def test_a_run_starts_from_the_newest_finite_checkpoint_of_one_that_stopped(tmp_path: Path) -> None:
    store = random_parses(tmp_path)
    prior.run(experiment(), store)
    newest = tmp_path / "prior" / "checkpoint_000000004"
    broken = Path(shutil.copytree(newest, tmp_path / "prior" / "checkpoint_000000005"))
    state = load_file(broken / "state.safetensors")
    whole = {name: value.clone() for name, value in state.items()}
    state[next(name for name in state if name.startswith("model/prior."))].fill_(math.nan)
    save_file(state, broken / "state.safetensors")
    progress = json.loads((broken / "progress.json").read_text())
    digest = hashlib.sha256((broken / "state.safetensors").read_bytes()).hexdigest()
    (broken / "progress.json").write_text(json.dumps({**progress, "sha256": digest}))
    advice = keep_stopped(experiment(), store, "prior")
    flags = re.search(
        r"--init.model (\S+) --vae.relaxed_images (\d+) and a lower --prior.learning_rate", advice
    )
    assert flags is not None
    model = load_npdraw(flags[1])
    for name, value in model.prior.state_dict().items():
        assert torch.equal(value, whole[f"model/prior.{name}"]), name
    settings = {"init": {"model": flags[1]}, "vae": {"relaxed_images": int(flags[2]), "images": 512}}
    new = resolve("digits", None, settings)
    assert new.vae.relaxed_share == pytest.approx(experiment().vae.relaxed_share, abs=1 / 512)
    assert new.prior.width == experiment().prior.width


def test_a_run_without_validation_images_takes_the_last_weights(tmp_path: Path) -> None:
    where = ("--storage", str(tmp_path), "--name", "x")
    train.main([*TINY, *IN_PROCESS, *where, "--data.valid_fraction", "0", "--train.select", "last"])
    manifest = json.loads((tmp_path / "x" / "vae" / "manifest.json").read_text())
    assert "temperature" not in manifest  # nothing fits it
    assert manifest["selected_at"] == manifest["images"]
    assert (tmp_path / "x" / "metrics.json").exists()
    store = Store.open(str(tmp_path), "x")  # as if its loss had turned non-finite after that
    assert "--vae.relaxed_images 0 and" in keep_stopped(store.config(), store, "vae")
    stopped, done = (load_npdraw(store.path(name)) for name in (STOPPED, "model"))
    assert all(torch.equal(*pair) for pair in zip(stopped.parameters(), done.parameters(), strict=True))


def fails(text: str) -> None:
    raise UserError(text)


@pytest.mark.parametrize("at_once", [1, AT_ONCE])
def test_shards_are_read_in_this_process_with_the_threads_of_a_task(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One by one, or several at once where they are at a URI; torch's threads are left as they were."""
    monkeypatch.setattr("npdraw_dist.distributed.tasks.ray_runs", lambda: False)
    together = threading.Barrier(at_once)

    def work(number: int) -> tuple[int, int]:
        together.wait(timeout=30)  # goes on when as many shards are worked on
        return number, torch.get_num_threads()

    torch.set_num_threads(2)
    folders = [None] if at_once > 1 else []
    found = list(map_items(range(2 * AT_ONCE), work, folders=folders))
    assert torch.get_num_threads() == 2
    assert sorted(found) == [(number, 1) for number in range(2 * AT_ONCE)]
    with pytest.raises(UserError, match="no"):
        list(map_items(["no"], fails, folders=folders))
    assert torch.get_num_threads() == 2


def test_no_more_shards_are_read_once_the_rest_is_not_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("npdraw_dist.distributed.tasks.ray_runs", lambda: False)
    begun: list[int] = []
    found = map_items(range(100), begun.append, folders=[None])
    next(found)
    found.close()  # type: ignore[attr-defined]
    assert len(begun) <= 2 * AT_ONCE


def test_the_random_state_of_the_caller_stays(tmp_path: Path) -> None:
    def work(job: int, context: RunContext) -> int:
        torch.manual_seed(job)
        return job + context.rank

    torch.manual_seed(7)
    drawn = torch.rand(3)
    torch.manual_seed(7)
    display: Any = None
    context = RunContext(fs.LocalFileSystem(), str(tmp_path), torch.device("cpu"), CRITERIA["prior"], display)
    assert run_in_process(work, 3, context, ScaleConfig(num_workers=0)) == 3
    assert torch.equal(torch.rand(3), drawn)


def test_a_kind_with_codes_trains_scores_and_samples(tmp_path: Path) -> None:
    sizes = {"width": 8, "depth": 1, "latents": 4, "codes": 6}
    flags = [word for name, size in sizes.items() for word in (f"--baseline.{name}", str(size))]
    train.main(["--model.kind", "vqvae", "--storage", str(tmp_path), *TINY, *IN_PROCESS, *flags])
    model = VQVAE.from_pretrained(tmp_path / "digits")
    assert model.spec.latents == 4
    assert model.sample(3).shape == (3, 1, 28, 28)
    assert model.spec.prior is not None  # the network of section prior
    assert (model.spec.prior.width, model.spec.prior.depth) == (16, 1)
    assert json.loads((tmp_path / "digits" / "metrics.json").read_text())["test/nll_iwae"] > 0
