"""Reports to Ray that the cloud takes back this machine: `python spot_notice.py --cloud aws`.

The command runs next to Ray on the workers of aws.yaml and gcp.yaml. Ray then drains the node; training saves
a checkpoint at once and continues without the node, which does not count as a failure (docs/cluster.md).
"""

import http.client
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import psutil
import ray
from pydantic import Field

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

    cloud: Literal["aws", "google"] = Field(description="the cloud of this machine")
    metadata: str | None = Field(
        None, description="address of the metadata service; if not given, the cloud's"
    )


def this_node() -> tuple[str, str]:
    """Ray's id of this machine, and the address of its cluster."""
    own = {address.address for card in psutil.net_if_addrs().values() for address in card}
    ray.init(address="auto", log_to_driver=False)
    try:
        node = next(n["NodeID"] for n in ray.nodes() if n["Alive"] and n["NodeManagerAddress"] in own)
        return node, ray.get_runtime_context().gcs_address
    finally:
        ray.shutdown()


def drain(node: str, address: str, seconds: int) -> None:
    """Makes Ray drain the node, which ends in `seconds`. Raises CalledProcessError if Ray's command fails.

    address: address of the cluster, which Ray needs if this machine also runs another cluster.
    """
    reason = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "the cloud takes it back"]
    limit = ["--deadline-remaining-seconds", str(seconds)]
    command = [*RAY, "drain-node", "--address", address, "--node-id", node]
    subprocess.run([*command, *reason, *limit], check=True)


def main(argv: Sequence[str]) -> None:
    flags = validate(Flags, parse_flags(Flags, "cluster.spot_notice", argv))
    cloud = CLOUDS[flags.cloud]
    node, address = this_node()  # looked up before the notice, since this takes seconds
    while not cloud.notice(flags.metadata or cloud.metadata):
        time.sleep(POLL_S)
    print(f"{flags.cloud} takes this machine back: node {node} is drained", flush=True)
    drain(node, address, cloud.warns_s)


if __name__ == "__main__":
    run_command(main)
