"""Where a command will write: what is refused, and that nothing is made."""

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from pyarrow import fs

from npdraw_dist.core.errors import UserError
from npdraw_dist.core.storage import Size, require_space, require_writable


def test_files_and_folders_that_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    require_writable(str(tmp_path / "file"))  # to be replaced
    require_writable(str(tmp_path / "a" / "b" / "new.json"))
    require_writable(str(tmp_path), folder=True)
    require_writable(str(tmp_path / "a" / "b"), folder=True)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_files_and_folders_that_cannot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="is a folder; give a file"):
        require_writable(str(tmp_path))
    for below in ("file/new.json", "file/a/new.json"):
        with pytest.raises(UserError, match="file is a file; choose another place"):
            require_writable(str(tmp_path / below))
    with pytest.raises(UserError, match="file is a file"):
        require_writable(str(tmp_path / "file"), folder=True)
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(UserError, match=f"no permission to write in {tmp_path}"):
        require_writable(str(tmp_path / "new"), folder=True)


def test_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []

    def usage(path: Path) -> SimpleNamespace:
        asked.append(path)
        return SimpleNamespace(free=2e9)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    local, folder = fs.LocalFileSystem(), str(tmp_path / "not" / "made")
    assert require_space(local, folder, Size(2e9, 2e9), "go") is None
    warning = require_space(local, folder, Size(1e9, 3e9), "go")
    assert warning == f"{folder} may need up to 3.00 GB, and 2.00 GB are free there"
    with pytest.raises(UserError, match=r"needs at least 2\.50 GB, and 2\.00 GB are free there; go away"):
        require_space(local, folder, Size(2.5e9, 3e9), "go away")
    assert set(asked) == {tmp_path}
    assert require_space(fs.SubTreeFileSystem("/", local), folder, Size(9e9, 9e9), "go") is None
