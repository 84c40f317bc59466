"""What Tune hears of the reports of a trial's training."""

import math
from queue import SimpleQueue
from typing import Any

from tune_spaces.space import IMAGES, METRICS, SCORE
from tune_spaces.trial import _Report


def test_tune_hears_of_validations_alone() -> None:
    """Not of a checkpoint between two of them, which has no score."""
    callback = object.__new__(_Report)
    callback.metric = METRICS["valid_prior_nll"]
    heard: SimpleQueue[dict[str, Any]] = SimpleQueue()
    callback._training_actor_item_queue = heard
    key = callback.metric.key
    callback.after_report(None, [{key: math.nan}], None)
    callback.after_report(None, [{key: 30.0, "images_seen": 256}], None)
    assert heard.get_nowait() == {SCORE: callback.metric.sign * 30.0, IMAGES: 256}
    assert heard.empty()
