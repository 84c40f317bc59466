"""Of several processes that create a file at once, one succeeds, in whatever order their requests arrive."""

import threading
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import fs

from npdraw_dist.core import lease
from npdraw_dist.core.lease import ABANDONED_AFTER_S, World, create_exclusively, this_process
from npdraw_dist.core.storage import open_filesystem, read_bytes, write_text

PATH = "1.json"
HERE = World(this_process())


class Turns:
    """Lets one of several threads make one request at a time, in a drawn order."""

    def __init__(self, order: Sequence[int], count: int) -> None:
        self.order, self.at_work = list(order), set(range(count))
        self.changed = threading.Condition(threading.RLock())
        self.turn = -1

    def wait(self, number: int) -> None:
        with self.changed:
            self.changed.wait_for(lambda: self.turn == number)

    def next(self) -> None:
        """Whom the order names; after its end, each in turn."""
        with self.changed:
            living = sorted(self.at_work)
            later = [number for number in living if number > self.turn]
            if living:
                self.turn = living[self.order.pop(0) % len(living)] if self.order else (later or living)[0]
            self.changed.notify_all()

    def end(self, number: int) -> None:
        with self.changed:
            self.at_work.discard(number)
            if self.turn == number:
                self.next()


class Stepwise(fs.FileSystemHandler):  # type: ignore[misc]
    """A filesystem each of whose requests waits for the turn of its process."""

    def __init__(self, inner: fs.FileSystem, turns: Turns, number: int) -> None:
        self.inner, self.turns, self.number = inner, turns, number

    def _step(self, call: Callable[[], Any]) -> Any:
        self.turns.wait(self.number)
        try:
            return call()
        finally:
            self.turns.next()

    def get_type_name(self) -> str:
        return "stepwise"

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info(self, paths: list[str]) -> Any:
        return self._step(lambda: self.inner.get_file_info(paths))

    def get_file_info_selector(self, selector: fs.FileSelector) -> Any:
        return self._step(lambda: self.inner.get_file_info(selector))

    def delete_file(self, path: str) -> None:
        self._step(lambda: self.inner.delete_file(path))

    def write(self, path: str, text: str) -> None:
        self._step(lambda: write_text(self.inner, path, text))

    def _unused(self, *arguments: Any) -> Any:
        raise NotImplementedError

    create_dir = delete_dir = delete_dir_contents = delete_root_dir_contents = move = copy_file = _unused
    open_input_stream = open_input_file = open_output_stream = open_append_stream = _unused


def race(names: Sequence[str], order: Sequence[int]) -> tuple[list[bool], str]:
    """Who of the processes with these names created the file, and its content."""
    inner, root = open_filesystem(f"memory://{uuid.uuid4().hex}")
    inner.create_dir(root)
    turns = Turns(order, len(names))

    def one(number: int) -> bool:
        handler = Stepwise(inner, turns, number)
        world = World(this_process(), now=lambda: 0.0, sleep=lambda seconds: None)
        try:
            return create_exclusively(
                fs.PyFileSystem(handler), f"{root}/{PATH}", names[number], names[number], {}, world
            )
        finally:
            turns.end(number)

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(len(names)) as pool:
        patch.setattr(lease, "write_text", lambda each, path, text: each.handler.write(path, text))
        found = [pool.submit(one, number) for number in range(len(names))]
        turns.next()
        won = [each.result(60) for each in found]
    return won, read_bytes(inner, f"{root}/{PATH}").decode() if any(won) else ""


@pytest.mark.parametrize("names", [["a", "b"], ["b", "a"]])
def test_one_of_two_creates_it_in_every_order_of_their_requests(names: list[str]) -> None:
    for first in combinations(range(10), 5):  # each makes five requests, if it need not wait
        won, content = race(names, [0 if step in first else 1 for step in range(10)])
        assert won.count(True) == 1, first
        assert content == names[won.index(True)], first


@given(st.permutations(["a", "b", "c"]), st.lists(st.integers(0, 2), max_size=40))
def test_one_of_three_creates_it(names: list[str], order: list[int]) -> None:
    won, content = race(names, order)
    assert won.count(True) == 1
    assert content == names[won.index(True)]


@pytest.mark.parametrize("kind", ["local", "memory"])
def test_a_file_that_is_there_stays(kind: str, tmp_path: Path) -> None:
    filesystem, root = open_filesystem(str(tmp_path) if kind == "local" else f"memory://{uuid.uuid4().hex}")
    path = f"{root}/deep/{PATH}"
    assert create_exclusively(filesystem, path, "first", "a", {}, HERE)
    assert not create_exclusively(filesystem, path, "second", "b", {}, HERE)
    assert read_bytes(filesystem, path) == b"first"
    found = filesystem.get_file_info(fs.FileSelector(f"{root}/deep"))
    assert [info.base_name for info in found] == [PATH]


def test_many_threads_create_at_once(tmp_path: Path) -> None:
    local = fs.LocalFileSystem()
    with ThreadPoolExecutor(16) as pool:
        won = list(
            pool.map(
                lambda n: create_exclusively(local, str(tmp_path / PATH), str(n), str(n), {}, HERE), range(64)
            )
        )
    assert won.count(True) == 1
    assert (tmp_path / PATH).read_text() == str(won.index(True))


@pytest.mark.parametrize("name", ["0-lower", "z-higher"])
def test_the_announcement_of_a_dead_process_delays_and_goes(name: str) -> None:
    filesystem, root = open_filesystem(f"memory://{uuid.uuid4().hex}")
    write_text(filesystem, f"{root}/{PATH}.{name}", "")
    seconds = 0.0

    def sleep(s: float) -> None:
        nonlocal seconds
        seconds += s

    seen: dict[str, float] = {}
    world = World(this_process(), now=lambda: seconds, sleep=sleep)
    while not create_exclusively(filesystem, f"{root}/{PATH}", "mine", "m", seen, world):
        sleep(1)
    assert ABANDONED_AFTER_S <= seconds < ABANDONED_AFTER_S + 2
    found = filesystem.get_file_info(fs.FileSelector(root))
    assert [info.base_name for info in found] == [PATH]
