"""One small run of all stages on Ray: its files, and how it resumes."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors import safe_open
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from npdraw_dist import NPDraw, PartSequence, train
from npdraw_dist.config.schema import Experiment
from npdraw_dist.core.parts import PartBank
from npdraw_dist.core.paste import render
from npdraw_dist.distributed import start
from tests.helpers.in_process import stopped
from tests.helpers.runs import IN_PROCESS, TINY

pytestmark = pytest.mark.ray

DIGITS = 1797
TIMES = ("images_per_s", "data_wait_share", "recent/images_per_s")


def again(run: Path, *flags: str) -> None:
    train.main(["--storage", str(run.parent), "--name", run.name, *TINY, *flags])


def read(*parts: Any) -> dict[str, Any]:
    return dict(json.loads(Path(*parts).read_text()))


def rows_of(run: Path, stage: str, file: str = "metrics.jsonl") -> list[dict[str, Any]]:
    """The rows of a stage without times, which differ between runs."""
    rows = [json.loads(line) for line in (run / stage / file).read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in TIMES} for row in rows]


FILES = (
    "config.yaml metrics.json curves.png samples.png generation.gif reconstructions.png neighbours.png "
    "bank/bank.png parses/preview.png"
)


def test_the_run_folder_is_whole(tiny_run: Path) -> None:
    for name in FILES.split():
        assert (tiny_run / name).stat().st_size > 0, name
    assert list(tiny_run.rglob("*.part")) == []
    assert not (tiny_run / ".writable").exists()
    for stage in ("prior", "vae"):
        assert len(list((tiny_run / stage).glob("checkpoint_*/state.safetensors"))) == 2
        assert len(list((tiny_run / stage).glob("events.out.tfevents.*"))) == 2  # settings, and one start
        manifest = read(tiny_run, stage, "manifest.json")
        assert manifest["fell_from_best"] is None
        assert manifest["core_seconds"] == read(tiny_run, "metrics.json")[f"{stage}/core_seconds"] > 0
        assert 0 < manifest["validation_core_seconds"] < manifest["core_seconds"]
        assert [row["images_seen"] for row in rows_of(tiny_run, stage)] == [256, 512]


def test_metrics(tiny_run: Path) -> None:
    metrics = read(tiny_run, "metrics.json")
    assert all(math.isfinite(value) for key, value in metrics.items() if key != "fingerprint")
    for stage in ("data", "bank", "parse", "prior", "vae", "sample"):
        for name in ("images_per_s", "seconds", "core_seconds"):
            assert metrics[f"{stage}/{name}"] > 0, (stage, name)
    for name in ("parse/canvas_mse", "prior/test_nll", "test/kl_whether"):
        assert metrics[name] > 0
    assert metrics["test/reconstruction"] < 0
    assert metrics["test/k"] == 5
    assert metrics["test/n"] == 32
    assert 0 < metrics["test/nll_iwae"] <= -metrics["test/elbo"]
    assert metrics["test/kl_where"] == 0  # in aligned order where is given
    assert metrics["test/bits_per_dim"] == pytest.approx(metrics["test/nll_iwae"] / (784 * math.log(2)))


def test_parses_are_plain_parquet_and_their_manifest_is_right(tiny_run: Path) -> None:
    bank = PartBank.load(tiny_run / "bank" / "bank.safetensors")
    grid = Experiment.model_validate(yaml.safe_load((tiny_run / "config.yaml").read_text())).canvas_grid
    ids, counts, errors, parts = set[str](), {}, [], []
    for split in ("train", "valid", "test"):
        rows = pq.read_table(tiny_run / "parses" / split).to_pylist()
        pictures = pq.read_table(tiny_run / "data" / split).to_pylist()
        assert [row["id"] for row in rows] == [row["id"] for row in pictures]
        counts[split] = len(rows)
        ids |= {row["id"] for row in rows}
        whether, where, what = (torch.tensor([r[n] for r in rows]) for n in ("whether", "where", "what"))
        z = PartSequence(whether.bool(), where.long(), what.long())
        images = torch.tensor([list(r["image"]) for r in pictures]).view(-1, 1, 28, 28) / 255
        errors.append((render(bank.parts, z, grid) - images).square().mean((1, 2, 3)))
        parts.append(z.whether.sum(1).float())
    held_out = counts["valid"] + counts["test"]
    assert counts["valid"] == pytest.approx(0.1 * DIGITS, abs=10)
    assert counts["test"] == pytest.approx(0.1 * DIGITS, abs=10)
    assert counts["train"] == round(0.3 * (DIGITS - held_out))
    assert len(ids) == sum(counts.values())
    manifest = read(tiny_run, "parses/manifest.json")
    assert (manifest["splits"], manifest["images"]) == (counts, len(ids))
    assert 0 < manifest["actor_core_seconds"] < manifest["core_seconds"]
    assert manifest["canvas_mse"] == pytest.approx(float(torch.cat(errors).mean()), rel=1e-4)
    assert 0 < manifest["canvas_mse"] < 0.1
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


def test_a_finished_run_is_reported_and_starts_nothing(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(start, "start_ray", stopped)
    before = stamps(tiny_run)
    again(tiny_run)
    again(tiny_run, "--scale.num_workers", "2")  # changes no result
    assert capsys.readouterr().out.count("all done") == 2
    assert stamps(tiny_run) == before


def test_the_run_in_this_process_is_that_of_one_worker_bit_by_bit(
    tiny_run: Path, tmp_path: Path, threads_of_a_worker: None
) -> None:
    """It takes two commands, of which the second uses the stages that the first has finished."""
    run = tmp_path / "run"
    again(run, *IN_PROCESS, "--stages", "data,bank,parse,prior")
    kept = stamps(run / "data", run / "bank", run / "parses", run / "prior")
    again(run, *IN_PROCESS, "--stages", "vae,sample")
    assert stamps(run / "data", run / "bank", run / "parses", run / "prior") == kept
    for name in ("bank/bank.safetensors", "model/model.safetensors", "samples.png"):
        assert (run / name).read_bytes() == (tiny_run / name).read_bytes(), name
    for stage in ("prior", "vae"):
        assert rows_of(run, stage) == rows_of(tiny_run, stage)
        losses = rows_of(run, stage, "training.jsonl")
        assert losses == rows_of(tiny_run, stage, "training.jsonl")
        assert [row["images_seen"] for row in losses] == [128, 256, 384, 512]
        tags = [EventAccumulator(str(folder / stage)).Reload().Tags() for folder in (run, tiny_run)]
        assert tags[0] == tags[1]
        assert {"bank", "samples"} <= set(tags[0]["images"])
    numbers = [read(folder, "metrics.json") for folder in (run, tiny_run)]
    own, on_ray = ({k: v for k, v in found.items() if k.startswith("test/")} for found in numbers)
    assert own == on_ray


@pytest.mark.slow
def test_a_run_on_ray_resumes_in_this_process_and_the_reverse(
    tiny_run: Path, tmp_path: Path, threads_of_a_worker: None
) -> None:
    """Each stage resumes at its first checkpoint: the prior in this process, then the VAE on Ray."""
    run = Path(shutil.copytree(tiny_run, tmp_path / "tiny"))
    for stage in ("prior", "vae"):
        shutil.rmtree(sorted((run / stage).glob("checkpoint_0*"))[-1])
        (run / stage / "manifest.json").unlink()
    shutil.rmtree(run / "model")
    (run / "metrics.json").unlink()
    again(run, *IN_PROCESS, "--stages", "prior")
    again(run)
    for name in ("model/model.safetensors", "samples.png"):
        assert (run / name).read_bytes() == (tiny_run / name).read_bytes(), name
    assert rows_of(run, "prior") == rows_of(tiny_run, "prior")
