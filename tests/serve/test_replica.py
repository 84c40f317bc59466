"""What is computed once for all requests of a replica."""

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from npdraw_dist.serve.engine import open_engine
from npdraw_dist.serve.replica import THREADS, Replica, Result
from tests.helpers.studio_models import GREY, save_model


@pytest.fixture
def replica(tmp_path: Path) -> Replica:
    return Replica(open_engine(str(save_model(tmp_path, GREY))))


def run(work: Coroutine[Any, Any, Result]) -> Result:
    """Runs it in a thread of its own: the browser's tests may have left a loop in this one."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


def test_it_is_computed_once_and_who_waits_takes_no_thread(replica: Replica) -> None:
    calls, go_on = [], threading.Event()

    def slow() -> int:
        calls.append(1)
        assert go_on.wait(60)
        return 5

    async def clients() -> list[int]:
        waiting = [asyncio.create_task(replica.once(slow)) for _ in range(THREADS + 2)]
        assert await asyncio.wait_for(replica.run(lambda: 7), 30) == 7
        waiting[0].cancel()  # the first client goes away
        await asyncio.wait(waiting[:1])
        go_on.set()
        return [*await asyncio.gather(*waiting[1:]), await replica.once(slow)]

    assert run(clients()) == [5] * (THREADS + 2)
    assert len(calls) == 1


def test_a_client_that_goes_away_cancels_it_for_no_other(replica: Replica) -> None:
    go_on = threading.Event()

    async def clients() -> int:
        busy = [asyncio.create_task(replica.run(go_on.wait, 60)) for _ in range(THREADS)]
        waiting = [asyncio.create_task(replica.once(five)) for _ in range(2)]
        await asyncio.sleep(0)  # all have begun; the computation itself has no thread yet
        waiting[0].cancel()
        await asyncio.wait(waiting[:1])
        go_on.set()
        await asyncio.gather(*busy)
        return await waiting[1]

    assert run(clients()) == 5


def five() -> int:
    return 5


def test_what_failed_is_tried_again(replica: Replica) -> None:
    answers = iter([ValueError("no"), None])

    def second_time() -> int:
        if error := next(answers):
            raise error
        return 3

    async def ask() -> int:
        with pytest.raises(ValueError, match="no"):
            await replica.once(second_time)
        return await replica.once(second_time)

    assert run(ask()) == 3
