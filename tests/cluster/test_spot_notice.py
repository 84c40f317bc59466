"""The cloud's notice that it takes a machine back, from a stand-in of its metadata service to Ray."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cluster import spot_notice
from cluster.spot_notice import aws_notice, google_notice
from tests.cluster.test_cluster_files import CLUSTER, read
from tests.cluster.test_node_faults import pytestmark as of_the_test_bed
from tests.helpers.testbed import Testbed


class Metadata(BaseHTTPRequestHandler):
    """Both clouds' services. A notice is there if `taken` is set."""

    taken = False

    def _answer(self, status: int, text: str = "") -> None:
        self.send_response(status)
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
    Metadata.taken = False
    server = ThreadingHTTPServer(("127.0.0.1", 0), Metadata)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("notice", [aws_notice, google_notice])
def test_a_notice_is_seen_once_it_is_there(notice: Callable[[str], bool], metadata: str) -> None:
    assert notice(metadata) is False
    Metadata.taken = True
    assert notice(metadata) is True


@pytest.mark.parametrize("notice", [aws_notice, google_notice])
def test_a_service_that_does_not_answer_is_no_notice(notice: Callable[[str], bool]) -> None:
    assert notice("http://127.0.0.1:9") is False


def test_the_node_is_drained_once_the_notice_is_there(
    metadata: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    drained: list[list[str]] = []

    def wait(seconds: float) -> None:
        assert drained == []
        Metadata.taken = True

    def run(command: list[str], check: bool) -> None:
        drained.append(command)

    monkeypatch.setattr(spot_notice, "this_node", lambda: ("abc", "10.0.0.1:6379"))
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(time, "sleep", wait)
    spot_notice.main(["--cloud", "aws", "--metadata", metadata])
    (command,) = drained
    flags = dict(zip(command[4::2], command[5::2], strict=True))
    assert command[3] == "drain-node"
    assert flags["--node-id"] == "abc"
    assert flags["--address"] == "10.0.0.1:6379"  # another Ray may run on the machine
    assert flags["--deadline-remaining-seconds"] == "110"
    assert "aws takes this machine back: node abc is drained" in capsys.readouterr().out


@pytest.mark.parametrize(("file", "cloud"), [("aws", "aws"), ("gcp", "google")])
def test_spot_workers_watch_for_the_notice(file: str, cloud: str) -> None:
    commands = read(file)["worker_start_ray_commands"]
    assert commands[-1].startswith(f"setsid nohup python /home/ray/spot_notice.py --cloud {cloud} ")
    assert commands[-1].endswith("&")
    assert not any("spot_notice" in command for command in read(file)["head_start_ray_commands"])
    assert "cluster/spot_notice.py /home/ray/" in (CLUSTER / "Dockerfile").read_text()


def on_the_test_bed(test: Callable[[Path], None]) -> Callable[[Path], None]:
    for mark in (*of_the_test_bed, pytest.mark.slow):
        test = mark(test)
    return test


@on_the_test_bed
def test_ray_drains_the_node(tmp_path: Path) -> None:
    """The service answers on the node alone, as a cloud's does."""
    server = tmp_path / "server.py"
    server.write_text(
        "from http.server import ThreadingHTTPServer\n"
        "from tests.cluster.test_spot_notice import Metadata\n"
        "Metadata.taken = True\n"
        "ThreadingHTTPServer(('127.0.0.1', 8080), Metadata).serve_forever()\n"
    )
    with Testbed(count=2) as testbed:
        testbed.env["PYTHONPATH"] = str(CLUSTER.parent)
        # Tests before may have a Ray of their own on this machine, and `auto` could take that.
        testbed.env["RAY_ADDRESS"] = "10.77.0.1:6379"
        testbed.popen([sys.executable, str(server)], 1)
        script = [sys.executable, str(CLUSTER / "spot_notice.py"), "--cloud", "google"]
        log = (tmp_path / "log").open("w+")
        watcher = testbed.popen([*script, "--metadata", "http://127.0.0.1:8080"], 1, log, log)
        assert watcher.wait(120) == 0, (tmp_path / "log").read_text()
        # As Ray Train's watcher asks for the nodes that are being drained.
        asked = "import json, ray; ray.init('auto', log_to_driver=False); "
        asked += "print(json.dumps(ray._private.state.state.get_draining_nodes()))"
        answer = testbed.popen([sys.executable, "-c", asked], 0, subprocess.PIPE).communicate()[0]
        nodes = {node["node_ip"]: node for node in testbed.query("nodes")}
    drained, head = nodes["10.77.0.2"], nodes["10.77.0.1"]
    draining = set(json.loads(answer.splitlines()[-1]))
    # A node without work is gone as soon as it is drained.
    assert draining == {drained["node_id"]} or drained["state"] == "DEAD"
    assert head["state"] == "ALIVE"
    assert head["node_id"] not in draining
