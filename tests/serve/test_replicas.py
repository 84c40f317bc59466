"""The studio on Ray Serve gets more requests than it takes."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from npdraw_dist.system.errors import UserError
from tests.helpers.serving import Served, free_port

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_more_requests_than_it_takes(local_ray: None, grey: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server works on at most 4 requests, and at most 8 wait."""
    from ray import serve

    from npdraw_dist.serve import Serve, deploy

    port = free_port()
    monkeypatch.setattr(deploy, "ONGOING", 4)
    monkeypatch.setattr(deploy, "QUEUED", 8)
    deploy.deploy(str(grey.folder), Serve(port=port))
    with pytest.raises(UserError, match="serves a studio already"):
        deploy.deploy(str(grey.folder), Serve(port=free_port()))
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        z = client.post("/v1/sample", json={"seed": 1}).json()["z"]

        def ask(_: int) -> httpx.Response:
            return httpx.post(f"http://127.0.0.1:{port}/v1/steps", json={"z": z}, timeout=60)

        right = ask(0).content
        with ThreadPoolExecutor(80) as pool:
            answers = list(pool.map(ask, range(160)))
        codes = Counter(answer.status_code for answer in answers)
        assert set(codes) == {200, 503}
        assert codes[200] >= 4
        assert all(answer.content == right for answer in answers if answer.status_code == 200)
        assert client.get("/healthz").status_code == 200  # and goes on
    other: Any = serve.deployment(Echo)
    serve.run(other.bind(), name="other", route_prefix="/other")
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    deploy.stop()  # ends no other application of the cluster
    assert list(serve.status().applications) == ["other"]
    serve.shutdown()


class Echo:
    def __call__(self, _: Any) -> str:
        return "here"
