"""The network interface over which a training worker meets the others on CPU."""

import fcntl
import os
import socket
import struct
from typing import Any

import ray
from ray.train.torch import TorchConfig

SIOCGIFADDR = 0x8915  # Linux: ioctl for the first IPv4 address of an interface


def interface_of(address: str) -> str | None:
    """The interface whose IPv4 address this is; None where none has it, or it cannot be told."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode())
            try:
                answer = fcntl.ioctl(probe, SIOCGIFADDR, request)
            except OSError:
                continue  # it has no IPv4 address
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return None


def choose_gloo_interface() -> None:
    """Sets GLOO_SOCKET_IFNAME to the interface of this node's Ray address, unless it is set.

    Gloo would look up the host name, which is 127.0.0.1 on many machines, where no other node finds it.
    """
    name = interface_of(ray.util.get_node_ip_address())
    if name is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


class _Backend(TorchConfig().backend_cls):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        worker_group.execute(choose_gloo_interface)
        super().on_start(worker_group, backend_config)


class ClusterTorchConfig(TorchConfig):  # type: ignore[misc]
    """Ray's process group of torch, each worker on the interface of its node's address."""

    @property
    def backend_cls(self) -> type:
        return _Backend
