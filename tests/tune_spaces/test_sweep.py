"""A whole sweep of one tiny trial. The slow tests kill larger ones: test_sweep_smoke.py."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from npdraw_dist import sample
from npdraw_dist.config.load import resolve
from tune_spaces import sweep

pytestmark = pytest.mark.ray

SPACE = """
from dataclasses import replace

from tune_spaces.space import Choice
from tune_spaces.spaces.smoke import SPACE as SMOKE

BUDGETS = {"digits": SMOKE.budgets["digits"] | {"data.fraction": 0.05, "prior.depth": 2}}
SPACE = replace(SMOKE, fields={"prior.depth": Choice((2,))}, samples=1, budgets=BUDGETS)
"""


def test_one_trial_from_its_space_to_the_best_config(
    local_ray: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space = tmp_path / "one.py"
    space.write_text(SPACE)
    command = ["--space", str(space), "--storage", str(tmp_path), "--name", "s", "--scheduler", "none"]
    sweep.main(command)
    folder = tmp_path / "s"
    (row,) = pq.read_table(folder / "results.parquet").to_pylist()
    assert (row["status"], row["prior.depth"]) == ("finished", 2)
    assert min(row["valid_nll"], row["bits_per_dim"], row["seconds"]) > 0
    assert sorted(path.name.partition("-")[0] for path in (folder / "cache").iterdir()) == [
        "bank",
        "parse",
        "prior",
    ]
    assert resolve("mnist", folder / "best.yaml", {}).prior.depth == 2
    for name in ("fields.png", "parallel.png"):
        assert (folder / name).stat().st_size > 3_000
    model = folder / "trials" / row["trial"] / "model"
    sample.main(["--model", str(model), "--n", "4", "--out", str(tmp_path)])
    assert (tmp_path / "samples.png").is_file()

    before = (folder / "results.parquet").read_bytes()
    capsys.readouterr()
    sweep.main(command)  # all is done: it only answers
    assert "best.yaml" in capsys.readouterr().out
    assert (folder / "results.parquet").read_bytes() == before
