"""Threads that read shards of one file do its work once."""

import threading
from concurrent.futures import ThreadPoolExecutor

from npdraw_dist.data.readers.known import kept


def test_threads_make_it_once() -> None:
    begun: list[int] = []
    asked = threading.Event()

    @kept(maxsize=2)
    def square(number: int) -> int:
        begun.append(number)
        asked.wait(0.2)  # others ask meanwhile
        return number * number

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(square, [3] * 4)) == [9] * 4
    assert begun == [3]


def test_keeps_the_last_ones() -> None:
    begun: list[int] = []

    @kept(maxsize=2)
    def make(number: int) -> int:
        begun.append(number)
        return number

    for number in (1, 2, 1, 3, 1, 2):
        make(number)
    assert begun == [1, 2, 3, 2]
