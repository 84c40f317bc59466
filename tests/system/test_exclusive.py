"""One of several processes that create a file at once succeeds, whatever the order of their requests."""

import threading
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import fs

from npdraw_dist.system import lease
from npdraw_dist.system.lease import ABANDONED_AFTER_S, create_exclusively
from npdraw_dist.system.process_table import World, this_process
from npdraw_dist.system.storage import open_filesystem, read_bytes, write_text

PATH = "1.json"


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
            if living := sorted(self.at_work):
                later = [number for number in living if number > self.turn] or living
                self.turn = living[self.order.pop(0) % len(living)] if self.order else later[0]
            self.changed.notify_all()

    def end(self, number: int) -> None:
        with self.changed:
            self.at_work.discard(number)
            if self.turn == number:
                self.next()


class Stepwise:
    """A filesystem on which each request waits for the turn of its process."""

    def __init__(self, inner: fs.FileSystem, turns: Turns, number: int) -> None:
        self.inner, self.turns, self.number = inner, turns, number

    def step(self, call: Callable[..., Any], *arguments: Any) -> Any:
        self.turns.wait(self.number)
        try:
            return call(*arguments)
        finally:
            self.turns.next()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return partial(self.step, getattr(self.inner, name))


def race(names: Sequence[str], order: Sequence[int]) -> tuple[list[bool], str]:
    """Whether each of the processes with these names created the file, and the file's content."""
    inner, root = open_filesystem(f"memory://{uuid.uuid4().hex}")
    inner.create_dir(root)
    turns = Turns(order, len(names))

    def one(number: int) -> bool:
        name, each = names[number], Stepwise(inner, turns, number)
        world = World(this_process(), now=lambda: 0.0, sleep=lambda seconds: None)
        try:
            return create_exclusively(each, f"{root}/{PATH}", name, name, {}, world)
        finally:
            turns.end(number)

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(len(names)) as pool:
        patch.setattr(lease, "write_text", lambda each, *words: each.step(write_text, each.inner, *words))
        found = [pool.submit(one, number) for number in range(len(names))]
        turns.next()
        won = [each.result(60) for each in found]
    return won, read_bytes(inner, f"{root}/{PATH}").decode() if any(won) else ""


def test_one_of_two_creates_it_in_every_order_of_their_requests() -> None:
    for first in combinations(range(10), 5):  # each makes five requests, if it need not wait
        won, content = race(["a", "b"], [0 if step in first else 1 for step in range(10)])
        assert won.count(True) == 1, first
        assert content == "ab"[won.index(True)], first


@given(st.permutations(["a", "b", "c"]), st.lists(st.integers(0, 2), max_size=40))
def test_one_of_three_creates_it(names: list[str], order: list[int]) -> None:
    won, content = race(names, order)
    assert won.count(True) == 1
    assert content == names[won.index(True)]


@pytest.mark.parametrize("kind", ["local", "memory"])
def test_a_file_that_is_there_stays(kind: str, tmp_path: Path) -> None:
    filesystem, root = open_filesystem(str(tmp_path) if kind == "local" else f"memory://{uuid.uuid4().hex}")
    path = f"{root}/deep/{PATH}"

    def create(content: str) -> bool:
        return create_exclusively(filesystem, path, content, content, {}, World(this_process()))

    assert create("first")
    assert not create("second")
    assert read_bytes(filesystem, path) == b"first"
    found = filesystem.get_file_info(fs.FileSelector(f"{root}/deep"))
    assert [info.base_name for info in found] == [PATH]


def test_many_threads_create_at_once(tmp_path: Path) -> None:
    def create(n: int) -> bool:
        path = str(tmp_path / PATH)
        return create_exclusively(fs.LocalFileSystem(), path, str(n), str(n), {}, World(this_process()))

    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(create, range(64)))
    assert won.count(True) == 1
    assert (tmp_path / PATH).read_text() == str(won.index(True))


@pytest.mark.parametrize("name", ["0-lower", "z-higher"])
def test_the_announcement_of_a_dead_process_delays_and_goes(name: str) -> None:
    filesystem, root = open_filesystem(f"memory://{uuid.uuid4().hex}")
    write_text(filesystem, f"{root}/{PATH}.{name}", "")
    slept = [0.0]
    seen: dict[str, float] = {}
    world = World(this_process(), now=lambda: sum(slept), sleep=slept.append)
    while not create_exclusively(filesystem, f"{root}/{PATH}", "mine", "m", seen, world):
        slept.append(1)
    assert ABANDONED_AFTER_S <= sum(slept) < ABANDONED_AFTER_S + 2
    found = filesystem.get_file_info(fs.FileSelector(root))
    assert [info.base_name for info in found] == [PATH]
