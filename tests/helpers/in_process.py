"""What happens between items of the stages that read data, and what ends a command early."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest.mock import Mock

from npdraw_dist.distributed import tasks

Mapper = Callable[..., Iterator[Any]]


def map_here(items: Sequence[Any], work: Callable[[Any], Any], *_: object, **__: object) -> Iterator[Any]:
    """`distributed.tasks.map_items` in this process, also where Ray runs."""
    return tasks.map_here(items, work)


def interfering(how: Callable[[], object], at: int) -> Mapper:
    """`map_here` that calls `how` before item number `at`."""

    def mapped(items: Sequence[Any], work: Callable[[Any], Any], *_: object, **__: object) -> Iterator[Any]:
        for number, item in enumerate(items):
            if number == at:
                how()
            yield from map_here([item], work)

    return mapped


class Stopped(Exception):
    """Instead of what would come next."""


killed = Mock(side_effect=KeyboardInterrupt)
stopped = Mock(side_effect=Stopped)
