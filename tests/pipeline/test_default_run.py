"""README's first command reaches its numbers."""

import json
from pathlib import Path

import pytest

from npdraw_dist import train

# Mean and standard deviation over seeds 0 to 4, each with its own split; one thread.
SPREAD = {
    "valid/nll_iwae": (59.0, 0.85),
    "valid/elbo": (-62.6, 0.9),
    "prior/valid_nll": (38.6, 0.8),
    "valid/canvas_mse": (0.0077, 0.0002),
    "parse/canvas_mse": (0.005075, 0.00003),
}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_default_command_reaches_its_numbers(tmp_path: Path) -> None:
    train.main(["--storage", str(tmp_path), "--name", "digits", "--eval.split", "valid"])
    found = json.loads((tmp_path / "digits" / "metrics.json").read_text())
    far = {name: found[name] for name, (mean, sd) in SPREAD.items() if abs(found[name] - mean) > 3 * sd}
    assert not far
