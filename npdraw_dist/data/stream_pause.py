"""Rests for the control loop of Ray Data, in a process that has other work."""

import time
from typing import TYPE_CHECKING

from ray.data._internal.execution.execution_callback import ExecutionCallback

if TYPE_CHECKING:
    from ray.data._internal.execution.streaming_executor import StreamingExecutor

REST_S = 0.002  # after each step
BLOCK_S, MOST_S = 0.005, 0.1  # longer by this for each block that waits for the reader, and at most


class StreamPause(ExecutionCallback):
    """Lets the loop rest after each step; a class for `DataContext.custom_execution_callback_classes`.

    While a full stream waits for its reader, the loop of Ray 2.60 runs without a rest: the outputs that it
    must not take yet count as ready, so `ray.wait` returns at once. In a process that trains, the loop then
    takes a core and, what is worse, Python's lock between the operations of each step.
    """

    def on_execution_step(self, executor: "StreamingExecutor") -> None:
        waiting = len(executor._output_node[1].output_queue) if executor._output_node else 0
        time.sleep(REST_S + min(BLOCK_S * waiting, MOST_S))
