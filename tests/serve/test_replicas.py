"""The studio on Ray Serve gets more requests than it takes."""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.helpers.serving import Served, free_port

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def address(local_ray: None, grey: Served) -> Iterator[str]:
    """A server of a small model, at work on up to 4 requests, with up to 8 that wait."""
    from ray import serve

    from npdraw_dist.serve import Serve, deploy

    port = free_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deploy, "ONGOING", 4)
        patch.setattr(deploy, "QUEUED", 8)
        deploy.deploy(str(grey.folder), Serve(port=port))
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


def test_more_requests_than_it_takes_are_told_so(address: str) -> None:
    z = httpx.post(f"{address}/v1/sample", json={"seed": 1}, timeout=60).json()["z"]

    def ask(_: int) -> httpx.Response:
        return httpx.post(f"{address}/v1/steps", json={"z": z}, timeout=60)

    right = ask(0).content
    with ThreadPoolExecutor(80) as pool:
        answers = list(pool.map(ask, range(160)))
    codes = Counter(answer.status_code for answer in answers)
    assert set(codes) == {200, 503}
    assert codes[200] >= 4
    assert all(answer.content == right for answer in answers if answer.status_code == 200)
    assert httpx.get(f"{address}/healthz", timeout=20).status_code == 200  # and goes on
