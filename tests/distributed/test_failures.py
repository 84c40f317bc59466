"""The causes of errors that Ray wrapped in others."""

from typing import Any

import pytest
import ray
from ray.core.generated.common_pb2 import ActorDiedErrorContext  # type: ignore[attr-defined]
from ray.exceptions import ActorDiedError, ActorUnavailableError, OutOfMemoryError, RayError
from ray.train import WorkerGroupError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError, WorkerHealthCheckTimeoutError

from npdraw_dist.distributed.failures import cause_chains, is_preemption, reason_of, storage_failed
from npdraw_dist.distributed.tasks import Pool, map_items
from npdraw_dist.system.errors import UserError
from tests.helpers.processes import until

# As Ray 2.60 writes it.
MEMORY = (
    "1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 10.77.0.2, ID: "
    "8a5e) was 15.21GB used / 16.00GB limit (0.950625), which exceeds the memory usage threshold"
)
NODE = "The actor died because its node has died. Node Id: 8a5e"
PEER = RuntimeError("[../gloo/transport/tcp/pair.cc:553] Connection closed by peer\nmore")


def died(detail: str = "Worker exit type: SYSTEM_ERROR", preempted: bool = False) -> ActorDiedError:
    error = ActorDiedError(
        ActorDiedErrorContext(
            class_name="RayTrainWorker", actor_id=bytes(16), node_ip_address="10.77.0.3", error_message=detail
        )
    )
    error._preempted = preempted
    return error


def failed(*ranks: Exception) -> WorkerGroupError:
    """The error of Ray Train, whose health check finds workers that no longer answer."""
    found = [WorkerHealthCheckFailedError("failed", e) if isinstance(e, RayError) else e for e in ranks]
    return WorkerGroupError("training failed", dict(enumerate(found)))


@pytest.mark.parametrize(
    ("ranks", "words"),
    [
        ([OutOfMemoryError(MEMORY), PEER], ["OutOfMemoryError: ", "10.77.0.2", "15.21GB used"]),
        ([PEER, died(), died()], ["SYSTEM_ERROR", "10.77.0.3"]),
        ([died(NODE), PEER], ["its node has died", "10.77.0.3"]),
        ([PEER, died("its node was terminated", preempted=True)], ["terminated"]),
        ([ActorUnavailableError("away", None)], ["ActorUnavailableError: "]),
        ([PEER, WorkerHealthCheckTimeoutError("hanging")], ["scale.timeout_s"]),
        ([ValueError("a\nb"), PEER], ["ValueError: a b"]),
    ],
)
def test_the_worker_that_failed_is_named_not_those_that_missed_it(
    ranks: list[Exception], words: list[str]
) -> None:
    error = failed(*ranks)
    line = reason_of(error)
    assert all(word in line for word in words), line
    assert "peer" not in line
    assert "\n" not in line
    assert is_preemption(error) == ("terminated" in line)


def test_the_reason_is_the_innermost_cause_and_each_worker_has_a_chain() -> None:
    inner = RuntimeError("CUDA out of memory\nTried to allocate")
    wrapped = RuntimeError("a task failed")
    wrapped.cause = inner  # type: ignore[attr-defined]  # as Ray's RayTaskError
    error = WorkerGroupError("training failed", {0: wrapped, 1: PEER})
    assert reason_of(error) == "RuntimeError: CUDA out of memory Tried to allocate"
    assert list(cause_chains(error)) == [(error, wrapped, inner), (error, PEER)]
    outside = ValueError("outside")
    outside.__cause__ = UserError("the loss turned non-finite")
    assert reason_of(outside) == "the loss turned non-finite"
    inner.__cause__ = wrapped  # a cause that causes itself ends the chain
    assert list(cause_chains(wrapped)) == [(wrapped, inner)]


def full(item: Any) -> Any:
    raise OSError(28, "No space left on device")


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("pool", [None, pytest.param(Pool(), marks=pytest.mark.slow)])
def test_a_storage_that_fails_in_a_task_of_ray_data_is_reported_in_a_line(pool: Pool | None) -> None:
    """A pool then frees its CPUs for the next work."""
    with pytest.raises(OSError, match="No space left") as caught:
        list(map_items([1], full, pool))
    line = str(storage_failed("parse", caught.value))
    assert line.startswith(
        "stage parse stopped because its storage failed ([Errno 28] No space left on device)"
    )
    until(lambda: ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"])


@ray.remote(num_cpus=0)  # type: ignore[untyped-decorator]
class ReadOnly:
    """As Ray Train's controller, which writes to the storage when it starts."""

    def __init__(self) -> None:
        raise OSError(30, "Read-only file system")

    def run(self) -> None:
        """Never reached."""


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_a_storage_that_fails_at_the_start_of_an_actor_is_reported_in_a_line() -> None:
    with pytest.raises(ActorDiedError) as caught:
        ray.get(ReadOnly.remote().run.remote())  # type: ignore[attr-defined]
    line = str(storage_failed("prior", caught.value))
    assert line.startswith("stage prior stopped because its storage failed ([Errno 30] Read-only file system")
    assert storage_failed("prior", died()) is None
