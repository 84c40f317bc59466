"""Run folders and model folders made before the rooms moved (commit 080e88b) are still read.

`expected.json` holds what that commit computed from them, with one thread.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from npdraw_dist import NPDraw, train
from npdraw_dist.nn.baselines.base import Baseline
from npdraw_dist.pipeline.models import load_model

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "before_the_move"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    shutil.copytree(FIXTURES / "run", tmp_path / "old")
    return tmp_path / "old"


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    return dict(json.loads((FIXTURES / "expected.json").read_text()))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def close(value: torch.Tensor, numbers: Any) -> None:
    torch.testing.assert_close(value, torch.tensor(numbers), rtol=1e-4, atol=1e-4)


def train_again(run: Path, *flags: str) -> None:
    """By its own config: the preset that it was made with has other sizes now."""
    train.main(
        ["--name", run.name, "--storage", str(run.parent), "--config", str(run / "config.yaml"), *flags]
    )


def files(run: Path) -> dict[str, int]:
    return {str(path.relative_to(run)): path.stat().st_mtime_ns for path in run.rglob("*")}


def test_the_command_finds_the_run_done(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(run)
    train_again(run)
    assert capsys.readouterr().out.startswith("all done: ")
    assert files(run) == before


@pytest.mark.parametrize(
    "flags", [["--train.micro_batch", "32"], ["--scale.num_workers", "2:8"], ["--scale.num_workers", "64"]]
)
def test_other_micro_batches_repeat_no_finished_stage(
    flags: list[str], run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(run)
    train_again(run, *flags)
    assert capsys.readouterr().out.startswith("all done: ")
    assert files(run) == before


@pytest.mark.ray
def test_the_last_stage_can_be_made_again(run: Path, local_ray: None) -> None:
    old = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").unlink()
    train_again(run, "--stages", "sample")
    new = json.loads((run / "metrics.json").read_text())
    assert old.keys() <= new.keys()
    assert new["fingerprint"] == old["fingerprint"]
    for name in ("test/nll_iwae", "test/elbo", "prior/test_nll", "parse/canvas_mse"):
        assert new[name] == pytest.approx(old[name], rel=1e-4), name
    assert (run / "samples.png").stat().st_size > 0


def test_the_model_gives_the_same_numbers(expected: dict[str, Any]) -> None:
    model = NPDraw.from_pretrained(FIXTURES / "run" / "model")
    generator = seeded(0)
    z = model.sample_prior(4, generator=generator)
    x = (torch.rand(4, 1, 28, 28, generator=generator) < 0.3).float()
    assert z.what.tolist() == expected["z_what"]
    assert z.whether.int().tolist() == expected["z_whether"]
    assert model.encode(x).whether.int().sum(1).tolist() == expected["encode_whether"]
    close(model.prior_log_prob(z), expected["prior_log_prob"])
    close(model.log_weights(x, k=3, generator=seeded(1)), expected["log_weights"])
    close(model.decode(model.render(z)).mean((1, 2, 3)), expected["decode_mean"])


def test_a_baseline_gives_the_same_numbers(expected: dict[str, Any]) -> None:
    generator = seeded(0)
    NPDraw.from_pretrained(FIXTURES / "run" / "model").sample_prior(4, generator=generator)
    x = (torch.rand(4, 1, 28, 28, generator=generator) < 0.3).float()
    model = load_model(str(FIXTURES / "vae_model"))
    assert isinstance(model, Baseline)
    close(model.log_weights(x, k=3, generator=seeded(1)), expected["vae_log_weights"])
