"""How training workers connect: by NCCL on GPUs of their own, else by gloo, over which interface."""

import os
from dataclasses import replace
from typing import Any

import psutil
import ray
import torch
from ray.train.torch import TorchConfig

from npdraw_dist.training.workers import per_gpu


def interface_of(address: str) -> str | None:
    """The interface with this IP address; None if there is none."""
    interfaces = psutil.net_if_addrs().items()
    return next((name for name, found in interfaces if address in [one.address for one in found]), None)


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
