"""How training workers connect: by NCCL on GPUs of their own, else by gloo, over which interface."""

import fcntl
import os
import socket
import struct
from dataclasses import replace
from typing import Any

import ray
import torch
from ray.train.torch import TorchConfig

from npdraw_dist.core.placement import per_gpu

SIOCGIFADDR = 0x8915  # Linux: ioctl for the first IPv4 address of an interface


def interface_of(address: str) -> str | None:
    """The interface with this IPv4 address; None if there is none or it cannot be found."""
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

    Gloo would look up the host name. On many machines that gives 127.0.0.1, which other nodes cannot reach.
    """
    name = interface_of(ray.util.get_node_ip_address())
    if name is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


def backend_for(gpus: float) -> str | None:
    """The backend of workers with so many GPUs each; None: as Ray chooses.

    NCCL refuses two ranks on one GPU.
    """
    return "gloo" if 0 < gpus < 1 < per_gpu(gpus) else None


class _Backend(TorchConfig().backend_cls):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        worker_group.execute(choose_gloo_interface)
        # NCCL ends a worker that torch gives no GPU, which then computes on the CPU (`device.usable`).
        if backend_config.backend != "gloo" and not all(worker_group.execute(torch.cuda.is_available)):
            backend_config = replace(backend_config, backend="gloo")
        super().on_start(worker_group, backend_config)


class ClusterTorchConfig(TorchConfig):  # type: ignore[misc]
    """Ray's torch process group; each worker uses the interface of its node's address.

    NCCL only if every worker has a GPU that torch finds.
    """

    @property
    def backend_cls(self) -> type:
        return _Backend
