"""A small comparison as a user runs it: trainings in processes of their own, then the report, without Ray."""

import json
import os
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from torch import Tensor, nn

from npdraw_dist.nn.npdraw import NPDraw
from npdraw_dist.pipeline.store import OPENINGS, Store
from tests.helpers.runs import Refused
from tune_spaces import measured, report, sweep, trainings
from tune_spaces.budgets import Job

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

SPACE = """
from tune_spaces.space import Choice, Kinds, Space

SPACE = Kinds(
    spaces={
        "npdraw": Space({"bank.size": Choice((10, 20))}, 1),
        "vae": Space({"baseline.latents": Choice((4, 8))}, 1),
    },
    settings={
        **{"prior.depth": 1, "prior.width": 16, "prior.attention_heads": 2, "baseline.width": 16},
        **{"vae.encoder_width": 16, "vae.decoder_width": 16, "eval.images": 32, "eval.k": 5},
        **{"train.batch_size": 16, "train.micro_batch": 16, "train.eval_images": 32},
        **{"scale.num_workers": 0, "eval.temperature": 0.5},
    },
    core_seconds={1.0: 3.0},
    trials=1,
    preset="digits",
    other_seeds=2,
)
"""


class Many(nn.Module):
    """More features than there are test images."""

    def forward(self, images):  # type: ignore[no-untyped-def]
        return nn.functional.adaptive_avg_pool2d(images, 24).flatten(1)


class Pixels(nn.Module):
    """64 features of an image: a grid of means."""

    def forward(self, images):  # type: ignore[no-untyped-def]
        return nn.functional.adaptive_avg_pool2d(images, 8).flatten(1)


def require_seconds(run: Path, plan: dict[str, Any], processor_s: dict[str, float]) -> None:
    """Fails unless each training took its seconds, which are no more than its process had of the cores.

    Other work on the cores can double them.
    """
    spent = {f"trials/{name}": seconds for name, seconds in plan["spent"].items()}
    spent |= {final["run"]: final["core_seconds"] for final in plan["finals"]}
    for path, stated in spent.items():
        manifests = [json.loads(file.read_text()) for file in (run / path).glob("*/manifest.json")]
        seconds = sum(m["core_seconds"] - m.get("validation_core_seconds", 0) for m in manifests)
        assert stated == pytest.approx(seconds, abs=0.06)
        target_s = 6.0 if path.startswith("longer") else 3.0
        assert 0.4 * target_s < seconds < 2.5 * target_s, path
        assert seconds < processor_s[path]
    longer = json.loads((run / "longer" / "vae-0-x2" / "vae" / "manifest.json").read_text())
    assert longer["images"] == 2 * plan["budgets"]["vae"]


def test_a_small_comparison_from_trials_to_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    (tmp_path / "space.py").write_text(SPACE)
    monkeypatch.setattr(measured, "KS", (1, 5, 20))  # 5,000 draws take a while
    train, processor_s = trainings.train, dict[str, float]()

    def timed(run: Store, job: Job, with_scores: bool) -> str:
        before = os.times()
        ended = train(run, job, with_scores)
        after = os.times()
        processor_s[job.path] = sum(after[2:4]) - sum(before[2:4])
        return ended

    monkeypatch.setattr(trainings, "train", timed)
    command = ["--space", str(tmp_path / "space.py"), "--storage", str(tmp_path), "--name", "c"]
    command += ["--longest", "2"]
    sweep.main([*command, "--data.fraction", "0.5"])
    plan = json.loads((tmp_path / "c" / "comparison.json").read_text())
    assert len(plan["finals"]) == 6
    require_seconds(tmp_path / "c", plan, processor_s)
    records = list((tmp_path / "c").glob("*/*/" + OPENINGS))
    assert len(records) == 2 + 2 + 4 + 2  # rates, trials, seeds, longer
    assert all(json.loads(record.read_text())["opened"] == [] for record in records)

    flags = ["--sweeps", str(tmp_path / "c"), "--k", "5", "--scale.num_workers", "0"]
    flags += ["--out", str(tmp_path / "report")]
    assert "leaves none of" in refused(report.main, *flags, "--served", "5000")
    assert "too few" in refused(report.main, *flags, "--extractor", f"{__name__}:Many")
    assert all(json.loads(record.read_text())["opened"] == [] for record in records)
    flags += ["--extractor", f"{__name__}:Pixels", "--samples", "100", "--served", "50"]
    draw, heats = NPDraw.sample, set[float | None]()

    def spied(model: NPDraw, n: int, **how: Any) -> Tensor:
        if how.get("pixels"):
            heats.add(how["temperature"])
        return draw(model, n, **how)

    monkeypatch.setattr(NPDraw, "sample", spied)
    with Store.open(str(tmp_path), "c").lease("comparison"):  # such as of a sweep that goes on
        assert "comparison" in refused(report.main, *flags)
    report.main(flags)
    assert heats == {1.0}  # that of all kinds, whatever a config draws at
    text = (tmp_path / "report" / "report.md").read_text()
    assert all(words in text for words in ("| NP-DRAW minus | seeds |", "floor: train", "ceiling: noise"))
    rows = pq.read_table(tmp_path / "report" / "report.parquet").to_pylist()
    assert [row["role"] for row in rows] == ["seed"] * 4 + ["longest"] * 2
    for row in rows:
        assert row["nll"] > 0
        assert row["elbo"] <= -row["nll"]
        assert row["flops"] > 0
        assert 0 <= row["recall"] <= 1

    report.main(flags)  # measures nothing again, and no run is opened twice
    assert pq.read_table(tmp_path / "report" / "report.parquet").to_pylist() == rows
    assert all(len(json.loads(record.read_text())["opened"]) <= 1 for record in records)
    other = [word if word != "5" else "6" for word in flags]
    assert "opened with another protocol" in refused(report.main, *other)
    assert "it trains no more models" in refused(sweep.main, *command, "--data.fraction", "0.5")
