"""Runs work on many items, on Ray or in this process: in tasks, or in processes that keep what they load.

A request to an object store takes as long as work on a thousand images. So where data are at a URI, each core
works on several items at once: while one waits, another computes.
"""

import pickle
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from traceback import format_exc
from typing import Any, Generic, TypeVar

import torch

from npdraw_dist.core.landmarks import Landmarks, require_seen
from npdraw_dist.distributed.start import ray_runs

Item = TypeVar("Item")
Result = TypeVar("Result")

AT_ONCE = 4  # items of a process with one core, where data are at a URI
TASKS_AT_ONCE = 2  # tasks on a core there; each is a process
MOST_ACTORS = 4096  # of a pool that grows with the cluster
FIRST_ITEMS = 8  # for each process that a growing pool starts with: it takes seconds to start one


@dataclass(frozen=True)
class Pool:
    """Processes of Ray that each load the work once, and hold a CPU, or `gpus` GPUs.

    size: the largest number of them, all started at once; None: the pool grows to one for each CPU.
    """

    size: int | None = None
    gpus: float = 0.0


class Loaded(Generic[Item, Result]):
    """Work by an object that is slow to make: each process makes `kind(*arguments)` at its first item."""

    def __init__(self, kind: Callable[..., Callable[[Item], Result]], *arguments: Any) -> None:
        self.kind, self.arguments = kind, arguments
        self._made: Callable[[Item], Result] | None = None

    def __call__(self, item: Item) -> Result:
        if self._made is None:
            self._made = self.kind(*self.arguments)
        return self._made(item)


@dataclass(frozen=True)
class _Raised:
    """An error that the driver raises.

    If the task raised it, Ray Data's executor would live on in reference cycles and hold a pool's CPUs: a
    driver that waits for CPUs makes no garbage, so Python would not look for any.
    """

    error: Exception


@dataclass(frozen=True)
class _Work(Generic[Item, Result]):
    function: Callable[[Item], Result]
    folders: tuple[Landmarks, ...]

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        import ray

        try:
            for folder in self.folders:
                require_seen(folder, ray.util.get_node_ip_address())
            result: Any = self.function(pickle.loads(row["item"]))
        except Exception as error:
            error.add_note(format_exc())
            result = _Raised(error)
        return {"result": pickle.dumps(result)}


def map_items(
    items: Sequence[Item],
    work: Callable[[Item], Result],
    pool: Pool | None = None,
    folders: Sequence[Landmarks | None] = (),
) -> Iterator[Result]:
    """Yields `work(item)` of each item, in any order, a few items ahead. Raises what `work` raises.

    Without Ray this process does the work, on one core as in a task. With Ray all nodes do, in tasks or in a
    pool, and Ray repeats the items of a process that dies. folders: what each node must see; None stands for
    data at a URI, and then several threads of a process run `work`. Raises BlindNode at the first node that
    does not see a folder: it would fail at many items in no time.
    """
    far = any(folder is None for folder in folders)
    if not ray_runs() or not items:
        yield from _map_far(items, work) if far else map_here(items, work)
        return
    import ray

    rows = [{"item": ray.cloudpickle.dumps(item)} for item in items]  # Arrow makes a list of a named tuple
    checked = _Work(work, tuple(folder for folder in folders if folder is not None))
    dataset: ray.data.Dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
    if pool is None:
        dataset = dataset.map(checked.__call__, num_cpus=1 / TASKS_AT_ONCE if far else 1)
    else:
        slots = pool.size or sum(int(n["Resources"].get("CPU", 0)) for n in ray.nodes() if n["Alive"])
        most = max(min(pool.size or MOST_ACTORS, len(rows)), 1)
        first = most if pool.size else max(min(slots, len(rows) // FIRST_ITEMS), 1)
        dataset = dataset.map(
            _Work,  # type: ignore[arg-type]  # Ray's hint knows functions only
            fn_constructor_args=(checked.function, checked.folders),
            compute=ray.data.ActorPoolStrategy(
                min_size=first if pool.size else 1,
                initial_size=first,
                max_size=most,
                max_concurrent_calls_per_actor=AT_ONCE if far else None,
                enable_true_multi_threading=far,  # else Ray lets one call of an actor in at a time
            ),
            num_cpus=0 if pool.gpus else 1,
            num_gpus=pool.gpus,
        )
    for row in dataset.iter_rows():
        result = pickle.loads(row["result"])  # our own tasks wrote it
        if isinstance(result, _Raised):
            raise result.error
        yield result


def map_here(items: Sequence[Item], work: Callable[[Item], Result]) -> Iterator[Result]:
    for item in items:
        with one_thread():  # sums in the order of a task, which has one core
            result = work(item)
        yield result


@contextmanager
def one_thread() -> Iterator[None]:
    """The block computes with one thread of torch."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _map_far(items: Sequence[Item], work: Callable[[Item], Result]) -> Iterator[Result]:
    threads = torch.get_num_threads()
    # The number of threads is one of each thread.
    pool = ThreadPoolExecutor(AT_ONCE, "shard", initializer=torch.set_num_threads, initargs=(1,))
    try:
        rest = iter(items)
        running = {pool.submit(work, item) for item in islice(rest, AT_ONCE)}
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            running |= {pool.submit(work, item) for item in islice(rest, len(done))}
            for future in done:
                yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)
