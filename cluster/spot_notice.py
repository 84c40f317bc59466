"""Reports to Ray that this machine is taken back: `python spot_notice.py --cloud aws`, for a pod `--now 50`.

With --cloud the command runs next to Ray on the workers of aws.yaml and gcp.yaml and waits for the cloud's
notice. With --now Kubernetes runs it before it ends a pod (raycluster.yaml, rayjob.yaml). Ray then drains the
node; training saves a checkpoint at once and continues without the node, which does not count as a failure
(docs/cluster.md).
"""

import contextlib
import http.client
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Self

import psutil
import ray
from pydantic import Field, PositiveInt, model_validator

from npdraw_dist.config.cli import Command, parse_flags, run_command, validate

POLL_S = 2.0
TIMEOUT_S = 2.0  # time limit of a request
RAY = [sys.executable, "-m", "ray.scripts.scripts"]


def _request(url: str, headers: Mapping[str, str], method: str = "GET") -> str | None:
    """The answer of the machine's metadata service; None if the service has none or does not reply."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy would ask another machine
    request = urllib.request.Request(url, headers=dict(headers), method=method)
    try:
        with opener.open(request, timeout=TIMEOUT_S) as answer:
            return str(answer.read().decode(errors="replace"))
    except (OSError, http.client.HTTPException):  # HTTPException: for example, a truncated answer
        return None


def aws_notice(metadata: str) -> bool:
    """Whether EC2 takes back the machine; if so, the metadata service has an `instance-action`."""
    lifetime = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
    token = _request(f"{metadata}/latest/api/token", lifetime, "PUT")
    path = "latest/meta-data/spot/instance-action"
    return token is not None and bool(_request(f"{metadata}/{path}", {"X-aws-ec2-metadata-token": token}))


def google_notice(metadata: str) -> bool:
    """Whether Compute Engine takes back the machine."""
    path = "computeMetadata/v1/instance/preempted"
    return _request(f"{metadata}/{path}", {"Metadata-Flavor": "Google"}) == "TRUE"


@dataclass(frozen=True)
class Cloud:
    """A cloud. metadata: address of its metadata service. warns_s: seconds that remain after a notice."""

    metadata: str
    notice: Callable[[str], bool]
    warns_s: int


CLOUDS = {
    "aws": Cloud("http://169.254.169.254", aws_notice, 110),
    "google": Cloud("http://metadata.google.internal", google_notice, 25),
}


class Flags(Command):
    """Waits for the cloud's notice that it takes this machine back, and reports it to Ray on this machine."""

    cloud: Literal["aws", "google"] | None = Field(None, description="the cloud of this machine")
    metadata: str | None = Field(
        None, description="address of the metadata service; if not given, the cloud's"
    )
    now: PositiveInt | None = Field(
        None,
        description="in place of --cloud: report now, and wait at most N seconds until Ray here ends",
    )

    @model_validator(mode="after")
    def _has_one(self) -> Self:
        if (self.cloud is None) == (self.now is None):
            raise ValueError("give --cloud or --now")
        return self


@dataclass(frozen=True)
class Node:
    """Ray's id of this machine, the address of its cluster, and the host and port of Ray on this machine."""

    id: str
    cluster: str
    raylet: tuple[str, int]


def this_node() -> Node:
    own = {address.address for card in psutil.net_if_addrs().values() for address in card}
    ray.init(address="auto", log_to_driver=False)
    try:
        node = next(n for n in ray.nodes() if n["Alive"] and n["NodeManagerAddress"] in own)
        raylet = node["NodeManagerAddress"], int(node["NodeManagerPort"])
        return Node(node["NodeID"], ray.get_runtime_context().gcs_address, raylet)
    finally:
        ray.shutdown()


def drain(node: Node, seconds: int) -> None:
    """Makes Ray drain the node, which ends in `seconds`. Raises CalledProcessError if Ray's command fails.

    The command names the cluster, since this machine may also run another one.
    """
    reason = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "this machine is taken back"]
    limit = ["--deadline-remaining-seconds", str(seconds)]
    command = [
        *RAY,
        "drain-node",
        "--address",
        node.cluster,
        "--node-id",
        node.id,
    ]
    subprocess.run([*command, *reason, *limit], check=True)


def wait_for_end(node: Node, seconds: float) -> None:
    """Waits at most `seconds` for the end of Ray here: a drained node ends when no work is left on it."""
    deadline = time.monotonic() + seconds
    with contextlib.suppress(OSError):
        while time.monotonic() < deadline:
            socket.create_connection(node.raylet, TIMEOUT_S).close()
            time.sleep(POLL_S)


def main(argv: Sequence[str]) -> None:
    flags = validate(Flags, parse_flags(Flags, "cluster.spot_notice", argv))
    node = this_node()  # looked up before the notice, since this takes seconds
    if flags.now is not None:
        drain(node, flags.now)
        wait_for_end(node, flags.now)
        return
    assert flags.cloud is not None
    cloud = CLOUDS[flags.cloud]
    while not cloud.notice(flags.metadata or cloud.metadata):
        time.sleep(POLL_S)
    print(f"{flags.cloud} takes this machine back, so node {node.id} is drained", flush=True)
    drain(node, cloud.warns_s)


if __name__ == "__main__":
    run_command(main)
