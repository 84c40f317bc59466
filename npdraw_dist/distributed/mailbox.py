"""The actor through which rank 0 reports to the driver. It does not import torch, so it starts quickly."""

import threading
import time
from contextlib import suppress
from typing import Any

from npdraw_dist.distributed.start import can_grow
from npdraw_dist.system.process_table import Process, is_running, this_process

POLL_S = 1.0  # how often the mailbox looks whether its driver runs
END_S = 10.0  # the longest wait for a mailbox that ends

Progress = tuple[int, float, str]  # images seen, images/s, a note such as the loss


class Mailbox:
    """Keeps the latest progress, and new messages and metrics of rank 0, until the driver reads them.

    It also frees what the workers hold, which Ray Train leaves taken if its controller is killed. driver: a
    process of this machine that the mailbox outlives; when it has ended, the mailbox frees and ends too.
    """

    def __init__(self, driver: Process | None = None) -> None:
        self.progress: Progress = (0, 0.0, "")
        self.news: list[Any] = []
        self.workers = 0  # the number of workers at their last start
        self.waits = True  # whether the workers wait to start, for the first time or again
        self.resizes = False  # whether the workers end at their next checkpoint, so that more start
        self.held: Any = None  # the placement group of the workers
        if driver is not None:
            threading.Thread(target=self._outlive, args=(driver,), daemon=True).start()

    def _outlive(self, driver: Process) -> None:
        import ray

        while is_running(driver) is not False:
            time.sleep(POLL_S)
        self.free()
        ray.kill(ray.get_runtime_context().current_actor)

    def hold(self, group: Any) -> None:
        """Records the placement group of workers that start."""
        self.held = group

    def free(self) -> None:
        """Frees the CPUs and GPUs of the workers, if Ray Train has not."""
        from ray.util import remove_placement_group

        if self.held is not None:
            remove_placement_group(self.held)
        self.held = None

    def started(self, workers: int) -> None:
        if self.workers not in (0, workers):
            self.news.append(f"workers restart: their number changes from {self.workers} to {workers}")
        self.workers, self.waits, self.resizes = workers, False, False

    def resize(self) -> None:
        self.resizes = True

    def must_resize(self) -> bool:
        return self.resizes

    def ended(self, line: str | None) -> None:
        """Records that the workers wait. line: why they restart; None if the user is to see nothing."""
        self.free()
        self.waits = True
        if line is not None:
            self.news.append(line)

    def show(self, images_seen: int, images_per_s: float, note: str) -> None:
        self.progress, self.waits = (images_seen, images_per_s, note), False

    def say(self, line: Any) -> None:
        """Adds a line: a message to the user, or a row of metrics.jsonl or training.jsonl."""
        self.news.append(line)

    def read(self) -> tuple[Progress, list[Any], bool]:
        """The latest progress, the lines added since the last call, and whether the workers wait to start."""
        news, self.news = self.news, []
        return self.progress, news, self.waits


def start_mailbox() -> Any:
    """Starts the mailbox on this node. If the mailbox dies, Ray starts it again, empty.

    Ray Train's own cleaner frees the workers of a killed driver, such as a stopped trial, if Ray has a
    dashboard. The Ray of a command has none, so there the mailbox does it, and must outlive the driver.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    outlives = None if can_grow() else "detached"
    actor: Any = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Mailbox)
    started = actor.options(scheduling_strategy=here, lifetime=outlives)
    return started.remote(this_process() if outlives else None)


def end_mailbox(mailbox: Any) -> None:
    """Frees what the workers still hold, and ends the mailbox."""
    import ray

    with suppress(ray.exceptions.RayError, TimeoutError):
        ray.get(mailbox.free.remote(), timeout=END_S)
    ray.kill(mailbox)
