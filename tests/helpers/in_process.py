"""The stages that read data, without Ray."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from npdraw_dist.core.errors import UserError

Mapper = Callable[..., Iterator[Any]]


def map_here(items: Sequence[Any], work: Callable[[Any], Any], *_: object, **__: object) -> Iterator[Any]:
    """`data.tasks.map_items` in this process."""
    for item in items:
        try:
            yield work(item)
        except UserError as error:
            yield error


def interfering(how: Callable[[], object], at: int) -> Mapper:
    """`map_here` that calls `how` before item number `at`."""

    def mapped(items: Sequence[Any], work: Callable[[Any], Any], *_: object, **__: object) -> Iterator[Any]:
        for number, item in enumerate(items):
            if number == at:
                how()
            yield from map_here([item], work)

    return mapped


def killed() -> None:
    raise KeyboardInterrupt
