"""A machine is taken back. In test_blind_nodes.py and test_pod_ends.py, Ray drains a real node."""

import json
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from cluster import spot_notice
from cluster.spot_notice import Node, aws_notice, google_notice
from npdraw_dist.system.errors import UserError

NODE = Node("abc", "10.0.0.1:6379", ("127.0.0.1", 9))  # nobody answers at that port


class Metadata(BaseHTTPRequestHandler):
    """Both clouds' services. A notice is there if `taken` is set."""

    taken = False
    cut_off = False

    def _answer(self, status: int, text: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text) + self.cut_off))
        self.end_headers()
        self.wfile.write(text.encode())

    def do_PUT(self) -> None:
        known = self.path == "/latest/api/token" and self.headers["X-aws-ec2-metadata-token-ttl-seconds"]
        self._answer(200 if known else 403, "token")

    def do_GET(self) -> None:
        if self.path == "/computeMetadata/v1/instance/preempted":
            known = self.headers["Metadata-Flavor"] == "Google"
            self._answer(200 if known else 403, str(self.taken).upper())
        elif self.headers["X-aws-ec2-metadata-token"] != "token":
            self._answer(401)
        elif self.path == "/latest/meta-data/spot/instance-action" and self.taken:
            self._answer(200, json.dumps({"action": "terminate", "time": "2026-11-26T15:02:00Z"}))
        else:
            self._answer(404)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture
def metadata() -> Iterator[str]:
    Metadata.taken = Metadata.cut_off = False
    with ThreadingHTTPServer(("127.0.0.1", 0), Metadata) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("notice", [aws_notice, google_notice])
def test_a_notice_is_seen_once_it_is_there(notice: Callable[[str], bool], metadata: str) -> None:
    assert notice(metadata) is False
    Metadata.taken = True
    assert notice(metadata) is True
    Metadata.cut_off = True
    assert notice(metadata) is False
    assert notice("http://127.0.0.1:9") is False  # nobody answers


def test_the_node_is_drained_once_the_notice_is_there(metadata: str, monkeypatch: pytest.MonkeyPatch) -> None:
    drained: list[list[str]] = []

    def wait(seconds: float) -> None:
        assert drained == []
        Metadata.taken = True

    monkeypatch.setattr(spot_notice, "this_node", lambda: NODE)
    monkeypatch.setattr(subprocess, "run", lambda command, check: drained.append(command))
    monkeypatch.setattr(time, "sleep", wait)
    spot_notice.main(["--cloud", "aws", "--metadata", metadata])
    (command,) = drained
    flags = dict(zip(command[4::2], command[5::2], strict=True))
    assert command[3] == "drain-node"
    assert flags["--node-id"] == "abc"
    assert flags["--address"] == "10.0.0.1:6379"  # another Ray may run on the machine
    assert int(flags["--deadline-remaining-seconds"]) > 0


def test_a_pod_waits_for_the_end_of_ray_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    drained: list[list[str]] = []
    pauses: list[float] = []
    monkeypatch.setattr(subprocess, "run", lambda command, check: drained.append(command))
    monkeypatch.setattr(time, "sleep", pauses.append)
    monkeypatch.setattr(spot_notice, "this_node", lambda: NODE)
    spot_notice.main(["--now", "50"])
    assert drained[0][-2:] == ["--deadline-remaining-seconds", "50"]
    assert pauses == []  # Ray has ended

    with socket.create_server(("127.0.0.1", 0)) as raylet:
        clock = iter(range(1000))
        monkeypatch.setattr(time, "monotonic", lambda: next(clock))
        monkeypatch.setattr(spot_notice, "this_node", lambda: Node("abc", "", raylet.getsockname()))
        spot_notice.main(["--now", "5"])
    assert len(pauses) == 4


@pytest.mark.parametrize("flags", [[], ["--cloud", "aws", "--now", "5"]])
def test_either_a_cloud_or_now_is_given(flags: list[str]) -> None:
    with pytest.raises(UserError, match="give --cloud or --now"):
        spot_notice.main(flags)
