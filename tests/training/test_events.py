"""TensorBoard's events beside the rows: pictures and settings, kept over merges. Shapes: C, H, W."""

import atexit
import tempfile
import threading
import uuid
from pathlib import Path

import pytest
import torch
from pyarrow import fs
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from npdraw_dist.core.storage import list_files, open_filesystem, read_bytes
from npdraw_dist.training.events import Events

PICTURE = torch.rand(1, 8, 12)


def row(step: int, name: str = "valid/nll") -> dict[str, float]:
    return {"step": step, "images_seen": 10 * step, name: step / 10}


def read(folder: str) -> EventAccumulator:
    return EventAccumulator(folder, size_guidance={"scalars": 0, "images": 0, "tensors": 0}).Reload()


def fill(events: Events) -> None:
    events.begin(
        {"prior.width": 16, "vae.beta": 0.5, "data.source": "digits"}, "valid/nll", {"bank": PICTURE}
    )
    for step in (2, 4):
        events.write(row(step))
        events.add_between(row(step - 1, "recent/loss"))
        events.add_pictures(row(step), {"samples": PICTURE * step / 4})


@pytest.mark.parametrize("merges", [0, 1, 2])
def test_pictures_and_settings_stay(tmp_path: Path, merges: int) -> None:
    """Unmerged, merged, and merged again by a longer budget."""
    events = Events(fs.LocalFileSystem(), str(tmp_path))
    fill(events)
    rows = [row(1, "recent/loss"), row(3, "recent/loss"), row(2), row(4)]
    last = 4
    for extra in range(merges):
        last = 4 + 2 * extra
        if extra:
            rows.append(row(last))
            events.write(rows[-1])
        events.merge(rows)
        assert [path.name for path in tmp_path.iterdir()] == [f"events.out.tfevents.{last:012d}.merged"]
    found = read(str(tmp_path))
    assert [event.step for event in found.Scalars("valid/nll")] == [20, 40, 60][: last // 2]
    assert [event.step for event in found.Scalars("recent/loss")] == [10, 30]
    assert [event.step for event in found.Images("samples")] == [20, 40]
    (bank,) = found.Images("bank")
    assert (bank.step, bank.width, bank.height) == (0, 12, 8)
    (text,) = found.Tensors("settings/text_summary")
    assert b"prior.width: 16" in text.tensor_proto.string_val[0]
    plugins = found.PluginTagToContent("hparams")
    assert {"_hparams_/experiment", "_hparams_/session_start_info"} <= set(plugins)


def test_events_need_no_thread_and_no_file_beside_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer with a file of its own would try again as the process ends, where the disk is full."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    registered: list[object] = []
    before = threading.active_count()
    monkeypatch.setattr(atexit, "register", registered.append)
    fill(Events(fs.LocalFileSystem(), str(tmp_path)))
    assert len(list(tmp_path.iterdir())) == 7
    assert (threading.active_count(), registered) == (before, [])


def test_a_store_of_objects_keeps_them_too(tmp_path: Path) -> None:
    filesystem, folder = open_filesystem(f"memory://{uuid.uuid4().hex}")
    events = Events(filesystem, folder)
    fill(events)
    events.merge([row(2), row(4)])
    ((path, _),) = list_files(filesystem, folder)
    (tmp_path / path.rpartition("/")[2]).write_bytes(read_bytes(filesystem, path))
    assert [event.step for event in read(str(tmp_path)).Images("samples")] == [20, 40]
