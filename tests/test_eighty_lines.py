"""The one-file NP-DRAW learns, its digits are the package's, and the pages show the lines of the scripts."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from npdraw_dist.config.schema import DataConfig
from npdraw_dist.data.readers.arrays import digits
from npdraw_dist.data.splits import stratified

DOCS = Path(__file__).parents[1] / "docs"
SOURCE = (DOCS / "npdraw_in_eighty_lines.py").read_text()


def shown(page: str) -> list[str]:
    """The Python blocks of a page of docs/."""
    return re.findall(r"```python\n(.*?)\n```", (DOCS / page).read_text(), re.S)


def nll_after(folder: Path, prior_steps: int, vae_steps: int) -> float:
    """The test NLL that the file prints with fewer steps and four draws of z."""
    shorter = SOURCE.replace("800, 1000", f"{prior_steps}, {vae_steps}").replace("50)", "4)")
    assert shorter != SOURCE
    (folder / "shorter.py").write_text(shorter)
    done = subprocess.run(
        [sys.executable, folder / "shorter.py"], capture_output=True, text=True, timeout=300, check=True
    )
    return float(done.stdout.split("nats")[0].split()[-3])


@pytest.mark.slow
def test_the_file_learns(tmp_path: Path) -> None:
    assert nll_after(tmp_path, 3, 3) > 380
    assert nll_after(tmp_path, 40, 40) < 250


def test_its_digits_and_splits_are_the_packages() -> None:
    found: dict[str, torch.Tensor] = {}
    exec(SOURCE[: SOURCE.index("# 2. Bank")], found)
    images, labels = digits()
    data = DataConfig()
    test, _, train = stratified(labels.astype(np.int64), (data.test_fraction, data.valid_fraction), seed=0)
    ours = (torch.from_numpy(images).float() / 255 > 0.5).float().view(-1, 1, 28, 28)
    for mine, own in (("test", test), ("train", train)):
        assert sorted(found[mine]) == own
        assert torch.equal((found["grey"][own] >= 0.5).float(), ours[own])


def test_the_page_shows_the_whole_file() -> None:
    lines = [line for block in shown("eighty-lines.md") for line in block.splitlines() if line]
    assert lines == [line for line in SOURCE.splitlines() if line]


def test_the_page_of_the_loop_shows_lines_of_the_script() -> None:
    assert shown("own-loop.md")[0] in (DOCS / "own_loop.py").read_text()
