"""Early stopping (Prechelt 1998): a stage can end if validation stays far below its best."""

from collections.abc import Mapping
from typing import Any

from npdraw_dist.training.checkpoint import Criterion

FAR_NATS = 2.0  # least fall that counts; a smaller one can be noise of a few hundred validation images
FAR_SHARE = 0.02  # least fall as a share of the best value, for images with thousands of nats


def fall_text(fall: Mapping[str, Any]) -> str:
    """A message about `fall`, whose metric is `now` after `now_at` images and was `best` after `best_at`."""
    now = f"{fall['metric']} is {fall['now']:.2f} after {fall['now_at']:,} images"
    return f"{now}; its best was {fall['best']:.2f} after {fall['best_at']:,}"


def far_below(best: float, now: float) -> bool:
    """Whether the score `now` (higher is better) is below `best` by more than 2 nats and more than 2%."""
    return now < best - max(FAR_NATS, FAR_SHARE * abs(best))


class EarlyStopping:
    """Compares each validation that has the criterion's metric with the best one.

    progress: read from the checkpoint from which training resumes, or {}. patience: training ends after this
    many validations far below the best one, with none near the best in between. A validation that is better
    than the previous one is not counted. If patience is 0, training never ends early.
    """

    def __init__(self, criterion: Criterion, progress: dict[str, Any], patience: int = 0) -> None:
        self.criterion, self.patience = criterion, patience
        saved = progress.get("watch", {})
        self._best: dict[str, Any] | None = saved.get("best")
        self._last: dict[str, Any] | None = saved.get("last")
        self._warned: bool = saved.get("warned", False)
        self._far: int = saved.get("far", 0)  # validations counted since the last one near the best

    @property
    def ended(self) -> bool:
        return 0 < self.patience <= self._far

    def see(self, record: dict[str, Any], may_end: bool = True) -> str | None:
        """Adds a validation; returns a message if it is far below the best. may_end: see `Objective`."""
        if self.criterion.name not in record:
            return None
        before = self._last
        self._last = {"value": record[self.criterion.name], "images_seen": record["images_seen"]}
        if self._best is None or self._score(self._last) > self._score(self._best):
            self._best, self._warned = self._last, False
        fall = self.fall()
        if not may_end or fall is None:
            self._far = 0
        elif before is None or not self._score(self._last) > self._score(before):
            self._far += 1  # a rise is not counted, since training then recovers, as after too large a step
        if fall is not None and self.ended:
            ended = f"training ends, after {self._far} such validations (train.patience)"
            return f"{fall_text(fall)}; {ended}"
        if fall is None or self._warned:
            return None
        self._warned = True
        return f"validation fell: {fall_text(fall)}"

    def note(self) -> str:
        """The last validation, such as `validation nll 40.12 (best 39.80)`; "" before the first."""
        if self._best is None or self._last is None:
            return ""
        best = "" if self._best == self._last else f" (best {self._best['value']:.2f})"
        return f"validation {self.criterion.name.partition('/')[2]} {self._last['value']:.2f}{best}"

    def line(self, record: dict[str, Any]) -> str:
        """A message about the last validation, whose metrics are in `record`."""
        loss = f"loss {record['train/loss']:.2f}" if "train/loss" in record else ""
        found = ", ".join(filter(None, (loss, self.note())))
        return f"after {record['images_seen']:,} images: {found or 'a checkpoint'}"

    def fall(self) -> dict[str, Any] | None:
        """The numbers that `fall_text` takes if the last validation is far below the best one, else None."""
        if not self._best or not self._last or not far_below(*map(self._score, (self._best, self._last))):
            return None
        best = {"best": self._best["value"], "best_at": self._best["images_seen"]}
        now = {"now": self._last["value"], "now_at": self._last["images_seen"]}
        return {"metric": self.criterion.name, **best, **now}

    def summary(self) -> dict[str, Any]:
        """Entries for the stage's manifest: its final fall or None, and `ended_early` if it ended early."""
        return {"fell_from_best": self.fall(), **({"ended_early": True} if self.ended else {})}

    def as_json(self) -> dict[str, Any]:
        return {"best": self._best, "last": self._last, "warned": self._warned, "far": self._far}

    def _score(self, seen: dict[str, Any]) -> float:
        return self.criterion.score({self.criterion.name: seen["value"]})
