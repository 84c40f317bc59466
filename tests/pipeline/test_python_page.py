"""The blocks of docs/python.md run one after the other."""

import re
from pathlib import Path
from typing import Any

import pytest

from npdraw_dist import Drawings
from tests.helpers.studio_models import save_model

PAGE = Path(__file__).parents[2] / "docs" / "python.md"


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {"bank": {"size": 20}}
    save_model(tmp_path / "runs" / "digits", settings)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    assert len(blocks) >= 6
    for block in blocks:
        exec(block, names)
    assert (tmp_path / "sample.png").is_file()
    assert isinstance(names["edited"], Drawings)
    assert int(names["edited"].z.what[0, 14]) == 5
    assert names["log_w"].shape == (50, 16)
