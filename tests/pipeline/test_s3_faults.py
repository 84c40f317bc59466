"""A whole training on an S3 server that refuses requests and breaks connections now and then."""

import json
from collections.abc import Iterator

import pytest
import ray

from npdraw_dist import train
from npdraw_dist.config.schema import ScaleConfig
from npdraw_dist.core.storage import list_files, open_filesystem, read_bytes
from npdraw_dist.training import launch
from tests.helpers.flaky_proxy import Fault, Faults, flaky_proxy
from tests.helpers.runs import TINY
from tests.helpers.s3_server import s3_server

RUN = 4  # requests in a row that fail: more than the three attempts that pyarrow makes by default
EVERY = 40


@pytest.fixture
def faults(request: pytest.FixtureRequest) -> Iterator[Faults]:
    with s3_server(), flaky_proxy() as found:
        request.getfixturevalue("local_ray")
        ray.shutdown()  # its workers would not know the server
        launch.start_ray(ScaleConfig(), object_store_mb=128)
        yield found


def fault_of(method: str, path: str, number: int) -> Fault:
    """Of each EVERY requests of a method the last RUN fail, in turn in both ways."""
    if number % EVERY < EVERY - RUN:
        return None
    return "reset" if number // EVERY % 2 else "slow down"


@pytest.mark.ray
@pytest.mark.slow
def test_a_training_ends_well_on_a_storage_that_fails(faults: Faults) -> None:
    faults.decide = fault_of
    train.main(["--storage", "s3://bucket/runs", "--name", "faulty", *TINY])
    faults.decide = lambda method, path, number: None
    assert sum(faults.made.values()) > 2 * RUN
    filesystem, root = open_filesystem("s3://bucket/runs/faulty")
    found = {path.removeprefix(f"{root}/") for path, _ in list_files(filesystem, root)}
    assert {"model/config.json", "model/model.safetensors", "metrics.json", "samples.png"} <= found
    for stage in ("prior", "vae"):
        lines = read_bytes(filesystem, f"{root}/{stage}/metrics.jsonl").decode().splitlines()
        assert [json.loads(line)["images_seen"] for line in lines] == [256, 512]
