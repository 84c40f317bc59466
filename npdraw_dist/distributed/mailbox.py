"""The actor through which rank 0 reports to the driver. It does not import torch, so it starts quickly."""

from typing import Any

Progress = tuple[int, float, str]  # images seen, images/s, a note such as the loss


class Mailbox:
    """Keeps the latest progress, and new messages and metrics of rank 0, until the driver reads them."""

    def __init__(self) -> None:
        self.progress: Progress = (0, 0.0, "")
        self.news: list[Any] = []
        self.workers = 0  # the number of workers at their last start
        self.waits = True  # whether the workers wait to start, for the first time or again
        self.resizes = False  # whether the workers end at their next checkpoint, so that more start

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
    """Starts the mailbox on this node. If the mailbox dies, Ray starts it again, empty."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor: Any = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Mailbox)
    return actor.options(scheduling_strategy=here).remote()
