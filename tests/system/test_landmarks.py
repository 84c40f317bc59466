"""A landmark shows whether another process sees the same folder."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from npdraw_dist.system.landmarks import CLOCK_S, BlindNode, Landmarks, require_seen


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("seed: 0")
    return tmp_path / "run"


@pytest.fixture
def known(root: Path) -> Landmarks:
    """The landmark after it was sent to another node."""
    found = Landmarks.of("the run", "--storage", str(root), "config.yaml")
    assert found is not None
    sent: Landmarks = pickle.loads(pickle.dumps(found))
    return sent


def test_a_node_that_is_asked_imports_no_torch() -> None:
    """On a busy machine the import takes longer than the answer."""
    code = (
        "import sys; from npdraw_dist.system.landmarks import differences; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_file_of_another_size_is_another_folder(root: Path, known: Landmarks) -> None:
    (root / "config.yaml").write_text("seed: 10")
    with pytest.raises(BlindNode, match=r"config\.yaml .* --storage"):
        require_seen(known, "10.0.0.2")


def test_a_run_folder_of_another_time_is_another_run(root: Path, known: Landmarks) -> None:
    at = (root / "config.yaml").stat().st_mtime
    os.utime(root / "config.yaml", (at, at + CLOCK_S / 2))
    assert known.difference() is None
    os.utime(root / "config.yaml", (at, at - 2 * CLOCK_S))
    assert known.difference() == "config.yaml is another file there"


def test_a_folder_that_is_mounted_late_is_seen(tmp_path: Path, root: Path, known: Landmarks) -> None:
    root.rename(tmp_path / "away")
    with pytest.raises(BlindNode, match=r"/run cannot be read from 10\.0\.0\.2"):
        require_seen(known, "10.0.0.2")
    (tmp_path / "away").rename(root)
    require_seen(known, "10.0.0.2")
    assert Landmarks.of("the run", "--storage", str(tmp_path), "not there") is None
    assert "10.0.0.2, 10.0.0.3" in str(known.refusal(["10.0.0.3", "10.0.0.2"], ""))


def test_nodes_may_have_copies_of_the_data_but_not_an_empty_folder(root: Path) -> None:
    landmark = Landmarks.of_data(str(root))
    assert landmark is not None
    (root / "config.yaml").write_text("another size and time")
    assert landmark.difference() is None
    (root / "config.yaml").unlink()
    with pytest.raises(BlindNode, match=r"the data .* cannot be read from 10\.0\.0\.2; .* --data\.path"):
        require_seen(landmark, "10.0.0.2")
    assert Landmarks.of_data(str(root)) is None  # it is empty
    assert Landmarks.of_data("s3://bucket/data") is None
