"""One small run of all stages on Ray: what it leaves behind, and how it is taken up again."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from pyarrow import fs
from safetensors import safe_open

from npdraw_dist import NPDraw, PartSequence, train
from npdraw_dist.config.schema import Experiment
from npdraw_dist.core.parts import PartBank
from npdraw_dist.core.paste import render
from npdraw_dist.pipeline import prior
from npdraw_dist.pipeline.store import Store
from npdraw_dist.training import launch
from tests.helpers.runs import HERE, TINY, Refused

pytestmark = pytest.mark.ray

DIGITS = 1797


def again(run: Path, *flags: str) -> None:
    train.main(["--storage", str(run.parent), "--name", run.name, *TINY, *flags])


def read(*parts: Any) -> dict[str, Any]:
    return dict(json.loads(Path(*parts).read_text()))


@pytest.mark.parametrize(
    "name",
    [
        "config.yaml",
        "bank/bank.safetensors",
        "bank/bank.png",
        "bank/manifest.json",
        "parses/preview.png",
        "parses/manifest.json",
        "prior/metrics.jsonl",
        "vae/metrics.jsonl",
        "model/config.json",
        "model/model.safetensors",
        "metrics.json",
        "samples.png",
        "generation.gif",
        "reconstructions.png",
        "neighbours.png",
        "curves.png",
    ],
)
def test_the_run_folder_is_whole(tiny_run: Path, name: str) -> None:
    assert (tiny_run / name).stat().st_size > 0


def test_training_stages_leave_checkpoints_and_events(tiny_run: Path) -> None:
    for stage in ("prior", "vae"):
        assert len(list((tiny_run / stage).glob("checkpoint_*/state.safetensors"))) == 2
        assert len(list((tiny_run / stage).glob("events.out.tfevents.*"))) == 2  # settings, and one start
        manifest = read(tiny_run, stage, "manifest.json")
        assert manifest["fell_from_best"] is None
        assert manifest["core_seconds"] == read(tiny_run, "metrics.json")[f"{stage}/core_seconds"] > 0
        lines = (tiny_run / stage / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["images_seen"] for line in lines] == [256, 512]


def test_nothing_is_left_half_written(tiny_run: Path) -> None:
    assert list(tiny_run.rglob("*.part")) == []
    assert not (tiny_run / ".writable").exists()


def test_config_resolves_to_the_same_experiment(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (tiny_run / "config.yaml").read_text()
    experiment = Experiment.model_validate(yaml.safe_load(text))
    assert (experiment.prior.images, experiment.prior.width, experiment.data.fraction) == (512, 16, 0.3)
    capsys.readouterr()
    train.main(["--config", str(tiny_run / "config.yaml"), "--dry-run"])
    assert capsys.readouterr().out == text


@pytest.mark.slow
def test_the_weights_that_validated_best_are_handed_on(tiny_run: Path, tmp_path: Path) -> None:
    settings = yaml.safe_load((tiny_run / "config.yaml").read_text())
    settings["train"] |= {"select": "best", "eval_every_images": 128}
    settings["prior"] |= {"learning_rate": 3.0, "images": 768}  # it gets worse
    experiment = Experiment.model_validate(settings)
    shared = {folder: str(tiny_run) for folder in ("bank", "parses")}
    store = Store(fs.LocalFileSystem(), str(tmp_path), shared)
    launch.start_ray(experiment.scale)
    manifest = prior.run(experiment, store)
    records = [json.loads(line) for line in (tmp_path / "prior" / "metrics.jsonl").read_text().splitlines()]
    best = min(records, key=lambda record: record["valid/nll"])
    assert best != records[-1]
    assert manifest["selected_at"] == best["images_seen"]
    assert manifest["checkpoint"] == f"checkpoint_{best['step']:09d}"
    assert sorted(path.name for path in (tmp_path / "prior").glob("checkpoint_0*")) == [
        manifest["checkpoint"],
        f"checkpoint_{records[-1]['step']:09d}",
    ]


def test_metrics(tiny_run: Path) -> None:
    metrics = read(tiny_run, "metrics.json")
    needed = {f"test/{name}" for name in ("nll_iwae", "elbo", "reconstruction", "k", "n", "bits_per_dim")}
    needed |= {f"test/kl_{name}" for name in ("whether", "where", "what")}
    needed |= {"parse/canvas_mse", "prior/test_nll"}
    for name in ("images_per_s", "seconds", "core_seconds"):
        needed |= {f"{stage}/{name}" for stage in ("bank", "parse", "prior", "vae", "sample")}
    assert needed <= metrics.keys()
    numbers = {key: value for key, value in metrics.items() if key != "fingerprint"}
    assert all(math.isfinite(value) for value in numbers.values())
    assert metrics["test/k"] == 5
    assert metrics["test/n"] == 32
    assert 0 < metrics["test/nll_iwae"] <= -metrics["test/elbo"]
    assert metrics["test/kl_where"] == 0  # in aligned order where is given
    assert metrics["test/bits_per_dim"] == pytest.approx(metrics["test/nll_iwae"] / (784 * math.log(2)))
    assert all(metrics[key] > 0 for key in needed if key.endswith(("images_per_s", "seconds")))


def test_manifests(tiny_run: Path) -> None:
    bank, parses = read(tiny_run, "bank/manifest.json"), read(tiny_run, "parses/manifest.json")
    assert {"k", "patches", "objective", "seconds", "fingerprint"} <= bank.keys()
    assert bank["k"] == 20
    assert sum(bank["cluster_sizes"]) == bank["patches"]
    keys = {"images", "seconds", "images_per_s", "canvas_mse", "mean_parts", "fingerprint"}
    assert keys <= parses.keys()
    assert 0 < parses["actor_core_seconds"] < parses["core_seconds"]
    assert 0 < parses["canvas_mse"] < 0.1
    assert 0 < parses["mean_parts"] < 36
    fingerprints = {
        read(tiny_run, folder, "manifest.json")["fingerprint"]
        for folder in ("bank", "parses", "prior", "vae")
    }
    assert len(fingerprints) == 4


def test_no_pickle(tiny_run: Path) -> None:
    files = [
        f for folder in ("bank", "parses", "model") for f in (tiny_run / folder).rglob("*") if f.is_file()
    ]
    assert {f.suffix for f in files} <= {".safetensors", ".json", ".png", ".parquet", ".md", ".ids"}
    for path in ("bank/bank.safetensors", "model/model.safetensors"):
        with safe_open(tiny_run / path, framework="pt") as file:
            assert list(file.keys())


def test_parses_are_plain_parquet(tiny_run: Path) -> None:
    ids: dict[str, list[str]] = {}
    for split in ("train", "valid", "test"):
        table = pq.read_table(tiny_run / "parses" / split)
        assert {"id", "image", "whether", "where", "what"} <= set(table.column_names)
        assert {len(steps) for steps in table["what"].to_pylist()} == {36}
        ids[split] = table["id"].to_pylist()
    counts = {split: len(names) for split, names in ids.items()}
    held_out = counts["valid"] + counts["test"]
    assert counts["valid"] == pytest.approx(0.1 * DIGITS, abs=10)
    assert counts["test"] == pytest.approx(0.1 * DIGITS, abs=10)
    assert counts["train"] == round(0.3 * (DIGITS - held_out))
    assert len(set().union(*ids.values())) == sum(counts.values())
    manifest = read(tiny_run, "parses/manifest.json")
    assert (manifest["splits"], manifest["images"]) == (counts, sum(counts.values()))


def test_the_canvas_error_is_that_of_the_stored_parses(tiny_run: Path) -> None:
    bank = PartBank.load(tiny_run / "bank" / "bank.safetensors")
    grid = Experiment.model_validate(yaml.safe_load((tiny_run / "config.yaml").read_text())).canvas_grid
    errors, parts = [], []
    for split in ("train", "valid", "test"):
        rows = pq.read_table(tiny_run / "parses" / split).to_pylist()
        whether, where, what = (torch.tensor([r[n] for r in rows]) for n in ("whether", "where", "what"))
        z = PartSequence(whether.bool(), where.long(), what.long())
        images = torch.tensor([r["image"] for r in rows]).view(-1, 1, 28, 28) / 255
        errors.append((render(bank.parts, z, grid) - images).square().mean((1, 2, 3)))
        parts.append(z.whether.sum(1).float())
    manifest = read(tiny_run, "parses/manifest.json")
    assert manifest["canvas_mse"] == pytest.approx(float(torch.cat(errors).mean()), rel=1e-4)
    assert manifest["mean_parts"] == pytest.approx(float(torch.cat(parts).mean()))


def test_the_model_is_the_trained_one(tiny_run: Path) -> None:
    model = NPDraw.from_pretrained(tiny_run / "model").eval()
    assert torch.equal(model.bank.parts, PartBank.load(tiny_run / "bank" / "bank.safetensors").parts)
    images = model.sample(5, generator=torch.Generator().manual_seed(0))
    assert images.shape == (5, 1, 28, 28)
    assert 0 <= images.min() <= images.max() <= 1
    last = sorted((tiny_run / "vae").glob("checkpoint_0*"))[-1]
    with safe_open(last / "state.safetensors", framework="pt") as file:
        for name, value in model.state_dict().items():
            if name != "temperature":  # fitted after training
                assert torch.equal(file.get_tensor(f"model/model.{name}"), value), name
    fitted = read(tiny_run, "vae/manifest.json")["temperature"]
    assert model.temperature.tolist() == list(fitted.values())
    assert model.temperature.tolist() != [1, 1, 1]


def stamps(*folders: Path) -> dict[str, int]:
    return {str(f): f.stat().st_mtime_ns for folder in folders for f in folder.rglob("*") if f.is_file()}


def test_a_finished_run_says_so_and_starts_nothing(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any) -> None:
        raise AssertionError("a finished run needs no Ray")

    monkeypatch.setattr(launch, "start_ray", fail)
    before = stamps(tiny_run)
    again(tiny_run)
    again(tiny_run, "--scale.num_workers", "2")  # how, not what
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("all done") for line in lines)
    assert stamps(tiny_run) == before


@pytest.mark.slow
def test_a_stage_goes_on_with_other_micro_batches(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From its first checkpoint, with more workers than it had micro-batches; the run stays what it was."""
    run = Path(shutil.copytree(tiny_run, tmp_path / "copy"))
    last = sorted((run / "vae").glob("checkpoint_0*"))[-1]
    for folder in (last, run / "model"):
        shutil.rmtree(folder)
    for name in ("vae/manifest.json", "metrics.json"):
        (run / name).unlink()
    kept = stamps(run / "bank", run / "parses", run / "prior")
    again(run, "--train.micro_batch", "32", "--scale.num_workers", "2", "--scale.cpus_per_worker", "1")
    assert stamps(run / "bank", run / "parses", run / "prior") == kept
    printed = capsys.readouterr().out
    assert "vae: resumes from checkpoint_" in printed
    assert "a global batch of 128 in 4 micro-batches of 32, at most 2 a worker" in printed
    for name in ("vae/manifest.json", "metrics.json"):
        assert read(run, name)["fingerprint"] == read(tiny_run, name)["fingerprint"]
    old, new = (read(folder, "metrics.json")["test/elbo"] for folder in (tiny_run, run))
    assert new == pytest.approx(old, abs=5)  # the noise is another one


def test_later_stages_reuse_the_earlier(tiny_run: Path, tmp_path: Path, threads_of_a_worker: None) -> None:
    """Here without Ray."""
    run = Path(shutil.copytree(tiny_run, tmp_path / "copy"))
    shutil.rmtree(run / "vae")
    (run / "metrics.json").unlink()
    kept = stamps(run / "bank", run / "parses", run / "prior")
    again(run, *HERE, "--stages", "vae,sample")
    assert stamps(run / "bank", run / "parses", run / "prior") == kept
    # The same config and input give the same model, bit by bit.
    model = (Path("model") / "model.safetensors", Path("samples.png"))
    assert all((run / path).read_bytes() == (tiny_run / path).read_bytes() for path in model)
    old, new = read(tiny_run, "metrics.json"), read(run, "metrics.json")
    assert {k: v for k, v in old.items() if k.startswith("test/")} == {
        k: v for k, v in new.items() if k.startswith("test/")
    }


def test_a_loss_that_breaks_is_told_with_its_step(tiny_run: Path, tmp_path: Path, refused: Refused) -> None:
    run = tmp_path / "broken"
    run.mkdir()
    for folder in ("bank", "parses"):
        shutil.copytree(tiny_run / folder, run / folder)
    flags = ["--storage", str(tmp_path), "--name", "broken", *TINY, *HERE, "--prior.learning_rate", "1e30"]
    line = refused(train.main, *flags, "--stages", "prior")
    assert "the loss of stage prior turned non-finite at step 1" in line
    assert not (run / "prior" / "manifest.json").exists()
