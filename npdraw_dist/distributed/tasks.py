"""Runs work on many items, on Ray (in tasks, or in processes that keep what they load) or in this process.

A request to an object store takes as long as the work on a thousand images. So if data are at a URI, each
core works on several items at once.
"""

import pickle
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import islice
from traceback import format_exc
from typing import Any, Generic, TypeVar

import torch

from npdraw_dist.distributed.resources import living_nodes
from npdraw_dist.distributed.start import ray_runs
from npdraw_dist.system.landmarks import Landmarks, require_seen

Item = TypeVar("Item")
Result = TypeVar("Result")

AT_ONCE = 4  # items that a process with one core works on at once, if data are at a URI
TASKS_AT_ONCE = 2  # tasks (each in its own process) on one core, if data are at a URI
MOST_ACTORS = 4096  # largest pool that grows with the cluster
MANY, MOST_EACH = 1024, 16  # from `MANY` items on, `grouped` puts up to `MOST_EACH` of them together
FIRST_ITEMS = 8  # items per initial process of a growing pool, since starting a process takes seconds


@dataclass(frozen=True)
class Pool:
    """Processes of Ray that each load the work once and reserve a CPU, or `gpus` GPUs.

    size: the largest number of processes, which start together; if None, the pool grows to one process per
    CPU.
    """

    size: int | None = None
    gpus: float = 0.0


class Loaded(Generic[Item, Result]):
    """Calls the object `kind(*arguments)`, which is slow to create, so each process creates it only once."""

    def __init__(self, kind: Callable[..., Callable[[Item], Result]], *arguments: Any) -> None:
        self.kind, self.arguments = kind, arguments
        self._made: Callable[[Item], Result] | None = None

    def __call__(self, item: Item) -> Result:
        if self._made is None:
            self._made = self.kind(*self.arguments)
        return self._made(item)


@dataclass(frozen=True)
class _Raised:
    """An error in a task. The task returns the error, and the driver raises it.

    If the task raised the error, reference cycles would keep Ray Data's executor alive, which holds a pool's
    CPUs. A driver that waits for CPUs allocates nothing, so Python's garbage collector would not run.
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


def grouped(items: Sequence[Item]) -> list[Sequence[Item]]:
    """Cuts many items into groups for `map_items`, since each call of `work` costs the driver some 7 ms."""
    each = min(max(len(items) // MANY, 1), MOST_EACH)
    return [items[start : start + each] for start in range(0, len(items), each)]


def map_items(
    items: Sequence[Item],
    work: Callable[[Item], Result],
    pool: Pool | None = None,
    folders: Sequence[Landmarks | None] = (),
) -> Iterator[Result]:
    """Yields `work(item)` for each item, in any order; computes a few items ahead. Raises what `work` raises.

    Without Ray this process does the work, with one thread as in a task. With Ray all nodes do the work, in
    tasks or in a pool, and Ray repeats the items of a process that dies. folders: the folders that each node
    must see; None stands for data at a URI, for which several threads of a process run `work`. Raises
    BlindNode for the first node that does not see a folder, before that node fails at many items.
    """
    far = any(folder is None for folder in folders)
    if not ray_runs() or not items:
        yield from _map_far(items, work) if far else map_in_process(items, work)
        return
    import ray

    rows = [{"item": ray.cloudpickle.dumps(item)} for item in items]  # Arrow turns named tuples into lists
    checked = _Work(work, tuple(folder for folder in folders if folder is not None))
    dataset: ray.data.Dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
    if pool is None:
        dataset = dataset.map(checked.__call__, num_cpus=1 / TASKS_AT_ONCE if far else 1)
    else:
        most = min(pool.size or MOST_ACTORS, len(rows))
        cpus = sum(node.cpus for node in living_nodes())
        first = most if pool.size else max(min(cpus, len(rows) // FIRST_ITEMS), 1)
        dataset = dataset.map(
            _Work,  # type: ignore[arg-type]  # Ray's hint knows functions only
            fn_constructor_args=(checked.function, checked.folders),
            compute=ray.data.ActorPoolStrategy(
                min_size=first if pool.size else 1,
                initial_size=first,
                max_size=most,
                max_concurrent_calls_per_actor=AT_ONCE if far else None,
                enable_true_multi_threading=far,  # else Ray runs one call of an actor at a time
            ),
            num_cpus=0 if pool.gpus else 1,
            num_gpus=pool.gpus,
        )
    for row in dataset.iter_rows():
        result = pickle.loads(row["result"])  # safe, since our own tasks wrote it
        if isinstance(result, _Raised):
            raise result.error
        yield result


def map_in_process(items: Sequence[Item], work: Callable[[Item], Result]) -> Iterator[Result]:
    for item in items:
        with one_thread():  # as in a task, so that sums have the same order
            result = work(item)
        yield result


_free: ContextVar[int] = ContextVar("_free", default=0)  # torch's threads outside `one_thread`


@contextmanager
def one_thread() -> Iterator[None]:
    """Makes torch compute with one thread in the block."""
    threads, outside = torch.get_num_threads(), _free.set(free_threads())
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        _free.reset(outside)


def free_threads() -> int:
    """The number of threads for work whose result does not depend on it, such as decoding pictures."""
    return _free.get() or torch.get_num_threads()


def _map_far(items: Sequence[Item], work: Callable[[Item], Result]) -> Iterator[Result]:
    threads = torch.get_num_threads()
    # Each thread has its own setting of torch's number of threads, so the pool's threads set theirs.
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
