"""Work on the shards of a source by Ray Data, in tasks or a pool of actors; without Ray in this process.

A request to a store takes as long as work on a thousand images. So where data are at a URI, a core has
several shards at once: while one waits, another computes.
"""

import pickle
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, TypeVar

import torch

from npdraw_dist.core.errors import UserError
from npdraw_dist.core.landmarks import BlindNode, Landmarks, require_seen
from npdraw_dist.core.process import ray_runs

Item = TypeVar("Item")
Result = TypeVar("Result")

AT_ONCE = 4  # shards of a thread or an actor with one core, where data are at a URI
TASKS_AT_ONCE = 2  # tasks on a core there; each is a process
FIRST_ITEMS = 8  # for each actor that a pool starts with: it takes seconds to start one


@dataclass(frozen=True)
class _Work(Generic[Item, Result]):
    function: Callable[[Item], Result]
    folders: tuple[Landmarks, ...]

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        import ray

        try:
            for folder in self.folders:
                require_seen(folder, ray.util.get_node_ip_address())
            result: Result | UserError = self.function(row["item"])
        except UserError as error:  # returned: Ray wraps what is raised, and the other items go on
            result = error
        return {"result": pickle.dumps(result)}


def map_shards(
    items: Sequence[Item],
    work: Callable[[Item], Result],
    actors: bool = False,
    folders: Sequence[Landmarks | None] = (),
) -> Iterator[Result | UserError]:
    """`work(item)` of each item, a shard or what holds one, or the UserError that it raised; in any order.

    Where Ray does not run, it is done here, on one core as in a task. Else on the CPUs of all nodes: as
    tasks, or with `actors` in a pool of up to one actor for each CPU, each of which has one copy of `work`
    for all its items. folders: what each node has to see, of the folders that are read and written; None: one
    at a URI, and then `work` runs in several threads of a process. Raises BlindNode at the first node that
    does not see one: it would be through with many items in no time.
    """
    if not items:
        return
    far = any(folder is None for folder in folders)
    if not ray_runs():
        yield from _map_far(items, work) if far else _map_here(items, work)
        return
    import ray

    rows = [{"item": item} for item in items]
    checked = _Work(work, tuple(folder for folder in folders if folder is not None))
    dataset: ray.data.Dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
    if not actors:
        dataset = dataset.map(checked.__call__, num_cpus=1 / TASKS_AT_ONCE if far else 1)
    else:
        slots = sum(int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"])
        dataset = dataset.map(
            _Work,  # type: ignore[arg-type]  # Ray's hint knows functions only
            fn_constructor_args=(checked.function, checked.folders),
            compute=ray.data.ActorPoolStrategy(
                min_size=1,
                initial_size=max(min(slots, len(rows) // FIRST_ITEMS), 1),
                max_size=max(min(slots, len(rows)), 1),
                max_concurrent_calls_per_actor=AT_ONCE if far else None,
                enable_true_multi_threading=far,  # else Ray lets one call of an actor in at a time
            ),
            num_cpus=1,
        )
    for row in dataset.iter_rows():
        result = pickle.loads(row["result"])  # of our own tasks
        if isinstance(result, BlindNode):
            raise result
        yield result


def _map_here(items: Sequence[Item], work: Callable[[Item], Result]) -> Iterator[Result | UserError]:
    for item in items:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # sums in the order of a task, which has one core
        try:
            result = _done(work, item)
        finally:
            torch.set_num_threads(threads)
        yield result


def _map_far(items: Sequence[Item], work: Callable[[Item], Result]) -> Iterator[Result | UserError]:
    threads = torch.get_num_threads()
    # The number of threads is one of each thread.
    pool = ThreadPoolExecutor(AT_ONCE, "shard", initializer=torch.set_num_threads, initargs=(1,))
    try:
        rest = iter(items)
        running = {pool.submit(_done, work, item) for item in islice(rest, AT_ONCE)}
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            running |= {pool.submit(_done, work, item) for item in islice(rest, len(done))}
            for future in done:
                yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


def _done(work: Callable[[Item], Result], item: Item) -> Result | UserError:
    try:
        return work(item)
    except UserError as error:
        return error
