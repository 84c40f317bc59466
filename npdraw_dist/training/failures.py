"""The causes of an error that Ray wrapped in others."""

from collections.abc import Iterator

from npdraw_dist.core.errors import UserError

LONGEST = 500  # characters of a reason
Chain = tuple[BaseException, ...]  # outermost first


def cause_chains(error: BaseException, outer: Chain = ()) -> Iterator[Chain]:
    """Yields each chain of causes, from `error` to an innermost one: a chain for each worker that failed.

    Ray Train keeps causes in `worker_failures` or `controller_failure`, Ray in `cause`, Python in
    `__cause__`.
    """
    chain = (*outer, error)
    workers = list(getattr(error, "worker_failures", {}).values())
    single = [getattr(error, "controller_failure", None), getattr(error, "cause", None), error.__cause__]
    found = [c for c in workers or single if isinstance(c, BaseException) and c not in chain]
    for cause in found if workers else found[:1]:
        yield from cause_chains(cause, chain)
    if not found:
        yield chain


def reason_of(error: BaseException) -> str:
    """Why something failed, in one line: the innermost cause at the first worker that failed."""
    cause = next(cause_chains(error))[-1]
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    text = lines[0] if lines else ""
    return text if isinstance(cause, UserError) else f"{type(cause).__name__}: {text}"[:LONGEST]
