"""The causes of errors that Ray wrapped in others."""

from npdraw_dist.core.errors import UserError
from npdraw_dist.training.failures import cause_chains, reason_of


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


def test_a_cause_that_causes_itself_ends_the_chain() -> None:
    first, second = RuntimeError("first"), RuntimeError("second")
    first.__cause__, second.__cause__ = second, first
    assert list(cause_chains(first)) == [(first, second)]
