"""The parser in a pool of Ray's actors."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from npdraw_dist.config.load import build
from npdraw_dist.pipeline import bank, data, parse
from npdraw_dist.pipeline.store import Store
from tests.helpers.processes import until


def logs_of_actors() -> Iterator[tuple[int, str]]:
    """Process id and standard error of each actor of this Ray's pools."""
    node: Any = ray._private.worker._global_node
    folder = Path(node.get_logs_dir_path())
    for log in folder.glob("worker-*.err"):
        if ":actor_name:MapWorker" in (text := log.read_text()):
            yield int(log.stem.rpartition("-")[2]), text


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_a_process_that_parsed_ends_without_a_crash(tmp_path: Path) -> None:
    """A tensor in `threading.local` is freed while its thread ends, which crashed a thread of Ray."""
    before = dict(logs_of_actors())
    store = Store.open(str(tmp_path), "run")
    experiment = build({"scale": {"num_workers": 1}})
    store.claim(experiment)
    data.run(experiment, store)
    bank.run(experiment, store)
    parse.run(experiment, store)
    until(lambda: not any(Path(f"/proc/{process}").exists() for process, _ in logs_of_actors()))
    found = {process: text for process, text in logs_of_actors() if process not in before}
    assert found
    assert [process for process, text in found.items() if "SIGSEGV" in text] == []
