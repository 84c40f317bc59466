"""Two calls of `npdraw_dist.fit` with one name at once: the second one is refused and harms nothing."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem

import npdraw_dist
from npdraw_dist import NPDraw, PartBank
from npdraw_dist.system.errors import UserError
from npdraw_dist.system.lease import LEASE_FOLDER
from npdraw_dist.system.storage import PARTIAL
from tests.helpers.tiny_fit import SMALL, strokes


class Hooked(LocalFileSystem):
    """A local disk that calls `hook` once, when the first Parquet file is opened to be written."""

    protocol = "hooked"
    cachable = False
    hook: Callable[[], None] | None = None

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        file = super()._open(path, mode=mode, **options)
        if "w" in mode and ".parquet" in str(path) and (hook := Hooked.hook) is not None:
            Hooked.hook = None
            hook()
        return file


def files(folder: Path) -> dict[Path, bytes]:
    """The content of all whole files of a run and beside it, but those of its lease."""
    paths = [path for path in folder.rglob("*") if LEASE_FOLDER not in path.parts]
    whole = (path for path in paths if path.is_file() and not path.name.endswith(PARTIAL))
    return {path: path.read_bytes() for path in whole}


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(
        "npdraw_dist.distributed.tasks.ray_runs", lambda: False
    )  # this storage is of this process
    fsspec.register_implementation("hooked", Hooked, clobber=True)
    yield f"hooked://{tmp_path}"
    Hooked.hook = None


IN_USE = "bars is in use by process"


@pytest.mark.parametrize(
    ("second", "says"),
    [
        ({}, IN_USE),
        ({"images": strokes(40)}, IN_USE),
        ({"bank": {"size": 5000}}, r"bars has another config (bank.size: 8 -> 5000)"),
        ({"bank": PartBank.of(strokes(), size=5, patch=4)}, "bars began without this bank"),
    ],
    ids=["the same", "other images", "settings that are refused late", "a bank in memory"],
)
def test_a_second_fit_while_the_first_writes_its_images(
    second: dict[str, Any], says: str, storage: str, tmp_path: Path
) -> None:
    refused: list[str] = []

    def again() -> None:
        before = files(tmp_path)
        with pytest.raises(UserError) as caught:
            npdraw_dist.fit(**{"images": strokes(), "name": "bars", "storage": storage, **SMALL, **second})
        refused.append(str(caught.value))
        after = files(tmp_path)  # the first call goes on in its threads
        assert before.items() <= after.items()
        assert all((tmp_path / "bars") in path.parents for path in after)

    Hooked.hook = again
    model = npdraw_dist.fit(strokes(), name="bars", storage=storage, **SMALL)
    assert isinstance(model, NPDraw)
    assert len(refused) == 1
    assert says in refused[0]
    assert "\n" not in refused[0]
    model = npdraw_dist.fit(strokes(), name="bars", storage=storage, **SMALL)  # it is done
    assert model.sample(2, seed=0).shape == (2, 1, 12, 12)
