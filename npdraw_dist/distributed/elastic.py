"""Decides how many workers an elastic run starts with, and when it grows.

Ray Train's own elastic policy counts all resources of the nodes, also those that other jobs use. So it
requests workers that find no place, again and again. Here each start requests what is free.
"""

import time

from npdraw_dist.distributed.resources import Workers, free_now, living_nodes, room

SETTLE_S, POLL_S = 10.0, 0.5  # longest wait until the workers of an earlier start have freed their resources
LOOK_S = 60.0  # interval of the looks at free resources while workers train


class Size:
    """The number of workers of each start, within the bounds of `workers`.

    count: that of the present start.
    """

    def __init__(self, workers: Workers) -> None:
        self.workers, self.count = workers, workers.least
        self._most = workers.most  # less after a start whose workers found no place
        self._looked_at = time.monotonic()
        self._had_room = False  # whether the last look found room for more

    def start(self) -> int:
        """The number for the next start: what is free now, at least `workers.least`.

        The sum of free resources can fit more workers than the single nodes do. So a number of workers that
        found no place (`not_placed`) is not requested again until workers have started.
        """
        workers = self.workers
        if workers.least < workers.most:
            deadline = time.monotonic() + SETTLE_S
            most = min(self._most, self._room())
            while (found := self._free()) < most and time.monotonic() < deadline:
                time.sleep(POLL_S)
            self.count = max(workers.least, min(found, most))
        self._looked_at, self._had_room = time.monotonic(), False
        return self.count

    def not_placed(self) -> None:
        """Called after a start whose workers found no place."""
        self._most = max(self.workers.least, self.count - 1)

    def grows(self) -> bool:
        """Whether more workers find room, at two looks in a row. Called often while workers train.

        Each look also requests the nodes of all workers, since only an autoscaler can add them.
        """
        self._most = self.workers.most
        if self.count >= self._most or time.monotonic() - self._looked_at < LOOK_S:
            return False
        self._looked_at = time.monotonic()
        self.request(self._most)
        had_room, self._had_room = self._had_room, min(self._free(), self._room() - self.count) > 0
        return had_room and self._had_room

    def request(self, count: int) -> None:
        """Requests the nodes of `count` workers from the autoscaler, if there is one; 0 withdraws it."""
        from ray.autoscaler.sdk import request_resources

        if self.workers.least < self.workers.most:
            request_resources(bundles=[self.workers.resources] * count)

    def _room(self) -> int:
        """The number of workers that fit on the nodes if nothing else runs there."""
        return room(living_nodes(), self.workers.cpus, self.workers.gpus)

    def _free(self) -> int:
        """An upper bound on the number of workers that fit into free resources."""
        return room([free_now()], self.workers.cpus, self.workers.gpus)
