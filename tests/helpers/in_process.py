"""Stages whose items run in this process, with a disturbance between items, and ends of a command."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest.mock import Mock

from npdraw_dist.distributed import tasks

Mapper = Callable[..., Iterator[Any]]


def map_in_process(
    items: Sequence[Any], work: Callable[[Any], Any], *_: object, **__: object
) -> Iterator[Any]:
    """`distributed.tasks.map_items` in this process, also where Ray runs."""
    return tasks.map_in_process(items, work)


def interfering(how: Callable[[], object], at: int) -> Mapper:
    """`map_in_process` that calls `how` before item number `at`."""

    def mapped(items: Sequence[Any], work: Callable[[Any], Any], *_: object, **__: object) -> Iterator[Any]:
        for number, item in enumerate(items):
            if number == at:
                how()
            yield from map_in_process([item], work)

    return mapped


class Stopped(Exception):
    """Raised in place of the next step of a command."""


killed = Mock(side_effect=KeyboardInterrupt)
stopped = Mock(side_effect=Stopped)
