"""Landmarks: a folder that another process sees, or sees otherwise."""

import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from npdraw_dist.core.landmarks import CLOCK_S, COUNT, BlindNode, Landmarks, require_seen


def folder_of(root: Path, count: int) -> list[str]:
    root.mkdir()
    names = [f"{number:03d}.png" for number in range(count)]
    for name in names:
        (root / name).write_bytes(b"x" * (len(name) + int(name[:3])))
    return names


def landmarks(root: Path, names: list[str], with_times: bool = False) -> Landmarks:
    found = Landmarks.of("the data", "--data.path", str(root), names, with_times)
    assert found is not None
    return found


@pytest.mark.parametrize("count", [1, COUNT, COUNT + 1, 100])
def test_a_few_files_from_all_over_the_list_are_taken(tmp_path: Path, count: int) -> None:
    names = folder_of(tmp_path / "data", count)
    taken = [path for path, _, _ in landmarks(tmp_path / "data", names).files]
    assert taken[0] == names[0]
    assert min(count, COUNT // 2) <= len(taken) <= COUNT
    assert set(taken) <= set(names)
    places = [names.index(name) for name in taken]
    widest = max(b - a for a, b in zip(places, [*places[1:], count], strict=True))
    assert widest <= -(-count // COUNT)


def test_the_same_folder_is_seen_also_as_a_copy_of_the_data(tmp_path: Path) -> None:
    root = tmp_path / "data"
    known = pickle.loads(pickle.dumps(landmarks(root, folder_of(root, 9))))
    assert known.difference() is None
    shutil.copytree(root, tmp_path / "copy", copy_function=shutil.copyfile)  # with other times
    shutil.rmtree(root)
    assert known.difference() == ""
    (tmp_path / "copy").rename(root)
    assert known.difference() is None
    require_seen(known, "10.0.0.2")


def test_a_node_that_is_asked_imports_no_torch() -> None:
    """It takes a busy machine longer than the answer."""
    code = "import sys; from npdraw_dist.core.landmarks import differences; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_file_of_another_size_is_another_folder(tmp_path: Path) -> None:
    root = tmp_path / "data"
    known = landmarks(root, folder_of(root, 3))
    (root / "002.png").write_bytes(b"y")
    with pytest.raises(BlindNode, match=r"002\.png .* --data\.path"):
        require_seen(known, "10.0.0.2")


def test_a_run_folder_of_another_time_is_another_run(tmp_path: Path) -> None:
    """A node's own disk can hold an older run of this name, whose config has the same size."""
    root = tmp_path / "run"
    names = folder_of(root, 1)
    known = landmarks(root, names, with_times=True)
    at = (root / names[0]).stat().st_mtime
    os.utime(root / names[0], (at, at + CLOCK_S / 2))
    assert known.difference() is None
    os.utime(root / names[0], (at, at - 2 * CLOCK_S))
    assert known.difference() == "000.png is another file there"


def test_a_folder_that_is_mounted_late_is_seen(tmp_path: Path) -> None:
    root = tmp_path / "data"
    known = landmarks(root, folder_of(root, 2))
    root.rename(tmp_path / "away")
    with pytest.raises(BlindNode, match=r"/data cannot be read from 10\.0\.0\.2"):
        require_seen(known, "10.0.0.2")
    (tmp_path / "away").rename(root)
    require_seen(known, "10.0.0.2")
    assert Landmarks.of("the data", "--data.path", str(tmp_path), ["not here"]) is None
    assert "10.0.0.2, 10.0.0.3" in str(known.refusal(["10.0.0.3", "10.0.0.2"], ""))
