"""The causes of errors that Ray wrapped in others."""

import pytest
import ray
from ray.core.generated.common_pb2 import ActorDiedErrorContext  # type: ignore[attr-defined]
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayTaskError
from ray.train import WorkerGroupError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError, WorkerHealthCheckTimeoutError

from npdraw_dist.core.errors import UserError
from npdraw_dist.data.tasks import Pool, map_items
from npdraw_dist.training.failures import cause_chains, lost_workers, reason_of, storage_failed

# As Ray 2.60 writes it.
MEMORY = (
    "1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 10.77.0.2, ID: "
    "8a5e) was 15.21GB used / 16.00GB limit (0.950625), which exceeds the memory usage threshold"
)


def died(detail: str) -> ActorDiedError:
    return ActorDiedError(
        ActorDiedErrorContext(
            class_name="RayTrainWorker", actor_id=bytes(16), node_ip_address="10.77.0.3", error_message=detail
        )
    )


def failed(*workers: Exception) -> WorkerGroupError:
    """As Ray Train says that workers failed, the first of them in its health check."""
    lost = WorkerHealthCheckFailedError("A worker health check failed.", workers[0])
    return WorkerGroupError("training failed", {0: lost, **dict(enumerate(workers[1:], 1))})


@pytest.mark.parametrize(
    ("loss", "line"),
    [
        (
            OutOfMemoryError(MEMORY),
            "rank 0 died because memory ran out on node 10.77.0.2 (15.21GB used / 16.00GB limit)",
        ),
        (
            died("Worker exit type: SYSTEM_ERROR"),
            "rank 0 died (its process was killed or crashed) on node 10.77.0.3",
        ),
        (
            died("The actor died because its node has died. Node Id: 8a5e"),
            "rank 0 lost: its node died (10.77.0.3)",
        ),
    ],
)
def test_a_lost_worker_is_the_reason_not_those_that_missed_it(loss: Exception, line: str) -> None:
    assert reason_of(failed(loss, RuntimeError("Connection closed by peer"))) == line
    assert lost_workers(failed(RuntimeError("Connection closed by peer"))) is None


def test_memory_is_told_before_the_death_that_it_caused() -> None:
    assert "memory ran out" in reason_of(failed(died("SYSTEM_ERROR"), OutOfMemoryError(MEMORY)))
    assert reason_of(failed(OutOfMemoryError("in other words"))) == "rank 0 died because memory ran out"


def test_a_worker_of_no_group_has_no_rank() -> None:
    assert reason_of(died("crash")) == "a worker died (its process was killed or crashed) on node 10.77.0.3"


def test_a_silent_worker_is_named_by_its_setting() -> None:
    silent = WorkerGroupError("failed", {0: WorkerHealthCheckTimeoutError("hanging for 300 seconds")})
    assert reason_of(silent) == "rank 0 did not answer in time (scale.timeout_s)"


def test_the_reason_is_the_innermost_cause() -> None:
    inner = RuntimeError("CUDA out of memory\nTried to allocate")
    wrapped = RuntimeError("a task failed")
    wrapped.cause = inner  # type: ignore[attr-defined]  # as Ray's RayTaskError
    outer = RuntimeError("training failed")
    outer.worker_failures = {0: wrapped}  # type: ignore[attr-defined]  # as Ray Train's error
    assert reason_of(outer) == "RuntimeError: CUDA out of memory"
    outside = ValueError("outside")
    outside.__cause__ = UserError("the loss turned non-finite")
    assert reason_of(outside) == "the loss turned non-finite"


def test_every_failed_worker_has_a_chain() -> None:
    full = OSError("no space left on device")
    wrapped = RuntimeError("a task failed")
    wrapped.cause = full  # type: ignore[attr-defined]
    lost = RuntimeError("connection closed by peer")
    outer = RuntimeError("training failed")
    outer.worker_failures = {0: lost, 1: wrapped}  # type: ignore[attr-defined]
    assert list(cause_chains(outer)) == [(outer, lost), (outer, wrapped, full)]


def full(item: int) -> int:
    raise OSError(28, "No space left on device")


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("pool", [None, Pool()])
def test_a_storage_that_fails_in_a_task_of_ray_data_is_told_in_a_line(pool: Pool | None) -> None:
    with pytest.raises(RayTaskError) as caught:
        list(map_items([1], full, pool))
    line = str(storage_failed("parse", caught.value))
    assert line.startswith(
        "stage parse stopped because its storage failed ([Errno 28] No space left on device)"
    )


@ray.remote(num_cpus=0)  # type: ignore[untyped-decorator]
class ReadOnly:
    """As Ray Train's controller, which writes to the storage when it starts."""

    def __init__(self) -> None:
        raise OSError(30, "Read-only file system")

    def run(self) -> None:
        """Never reached."""


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_a_storage_that_fails_at_the_start_of_an_actor_is_told_in_a_line() -> None:
    with pytest.raises(ActorDiedError) as caught:
        ray.get(ReadOnly.remote().run.remote())  # type: ignore[attr-defined]
    line = str(storage_failed("prior", caught.value))
    assert line.startswith("stage prior stopped because its storage failed ([Errno 30] Read-only file system")
    assert storage_failed("prior", died("Worker exit type: SYSTEM_ERROR")) is None


def test_a_cause_that_causes_itself_ends_the_chain() -> None:
    first, second = RuntimeError("first"), RuntimeError("second")
    first.__cause__, second.__cause__ = second, first
    assert list(cause_chains(first)) == [(first, second)]
