"""A sweep over kinds of models: each trial runs the stages of its own kind."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.tune_spaces.test_sweep_smoke import command, run

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

SPACE = """
from tune_spaces.space import Choice, Space

TINY = {
    "data.fraction": 0.3,
    "bank.size": 20,
    "prior.depth": 1,
    "prior.width": 16,
    "prior.attention_heads": 2,
    "prior.images": 256,
    "vae.images": 256,
    "vae.encoder_width": 16,
    "vae.decoder_width": 16,
    "baseline.width": 16,
    "baseline.hidden": 16,
    "eval.images": 32,
    "eval.k": 5,
    "train.batch_size": 128,
    "train.micro_batch": 64,
    "train.eval_every_images": 128,
}
SPACE = Space({"model.kind": Choice(("npdraw", "vae", "air"))}, samples=3, budgets={"digits": TINY})
"""


def test_a_sweep_of_kinds(tmp_path: Path) -> None:
    space = tmp_path / "kinds.py"
    space.write_text(SPACE)
    # ASHA would stop the kinds that are worse after a few steps.
    run(*command(tmp_path, "--space", str(space), "--scheduler", "none"))
    rows = pq.read_table(tmp_path / "s" / "results.parquet").to_pylist()
    assert {row["model.kind"]: row["status"] for row in rows} == dict.fromkeys(
        ("npdraw", "vae", "air"), "finished"
    )
    for row in rows:
        assert row["valid_nll"] > 0
        assert (row["valid_prior_nll"] is None) == (row["model.kind"] != "npdraw")
        config = json.loads((tmp_path / "s" / "trials" / row["trial"] / "model" / "config.json").read_text())
        assert config["spec"]["kind"] == row["model.kind"]
    # One set of images for both baselines, and the parses of NP-DRAW.
    built = sorted(path.name.partition("-")[0] for path in (tmp_path / "s" / "cache").iterdir())
    assert built == ["bank", "parse", "parse", "prior"]
