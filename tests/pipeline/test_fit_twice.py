"""Two calls of `npdraw_dist.fit` with one name at once: the second one is refused and harms nothing."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem

import npdraw_dist
from npdraw_dist import NPDraw
from npdraw_dist.core.errors import UserError
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


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(
        "npdraw_dist.distributed.tasks.ray_runs", lambda: False
    )  # this storage is of this process
    fsspec.register_implementation("hooked", Hooked, clobber=True)
    yield f"hooked://{tmp_path}"
    Hooked.hook = None


@pytest.mark.parametrize("second", ["other images", "settings that are refused late"])
def test_a_second_fit_while_the_first_writes_its_images(second: str, storage: str) -> None:
    refused: list[str] = []

    def again() -> None:
        images = strokes(40) if second == "other images" else strokes()
        bank = {"size": 5000} if second.startswith("settings") else SMALL["bank"]
        with pytest.raises(UserError) as caught:
            npdraw_dist.fit(images, name="bars", storage=storage, **{**SMALL, "bank": bank})
        refused.append(str(caught.value))

    Hooked.hook = again
    model = npdraw_dist.fit(strokes(), name="bars", storage=storage, **SMALL)
    assert isinstance(model, NPDraw)
    assert len(refused) == 1
    assert "bars is in use by process" in refused[0]
    assert "\n" not in refused[0]
    model = npdraw_dist.fit(strokes(), name="bars", storage=storage, **SMALL)  # it is done
    assert model.sample(2, seed=0).shape == (2, 1, 12, 12)
