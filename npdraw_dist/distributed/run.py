"""Runs training on Ray Train: connects, starts and restarts the workers, and shows what they report."""

import _thread
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Generic, NamedTuple
from uuid import uuid4

import psutil
import ray
import ray.train
import torch
from pyarrow import fs
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util import remove_placement_group

from npdraw_dist.config.schema import ScaleConfig
from npdraw_dist.distributed.context import RayContext
from npdraw_dist.distributed.elastic import Size
from npdraw_dist.distributed.failures import NOT_PLACED, Restarts, cause_named
from npdraw_dist.distributed.mailbox import end_mailbox, start_mailbox
from npdraw_dist.distributed.nodes import require_on_this_node, unusable_gpu
from npdraw_dist.distributed.resources import Workers, free_now, listed, living_nodes, per_gpu
from npdraw_dist.distributed.start import can_grow, quiet_logs
from npdraw_dist.system.landmarks import Landmarks
from npdraw_dist.system.lease import Lease, LeaseError
from npdraw_dist.system.process import COMPUTE
from npdraw_dist.system.storage import display_path, read_bytes
from npdraw_dist.training.checkpoint import KEPT, Criterion, by_age
from npdraw_dist.training.context import Context, Display, Job, Resized, Result

POLL_S = 0.5  # how often the driver reads the mailbox
WAIT_S = 30.0  # seconds between two messages that workers wait for free nodes
RESIZED = "resized"  # what workers return that end so that others start
SNAPSHOT = "checkpoint_manager_snapshot.json"  # where Ray Train keeps its list of checkpoints


def choose_gloo_interface() -> None:
    """Sets GLOO_SOCKET_IFNAME if unset, since gloo uses the host name's address, which is often 127.0.0.1."""
    address, interfaces = ray.util.get_node_ip_address(), psutil.net_if_addrs().items()
    if name := next((one for one, found in interfaces if address in [at.address for at in found]), None):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


def backend_for(gpus: float) -> str | None:
    """`gloo` if workers share a GPU, which NCCL refuses; None leaves the choice to Ray."""
    return "gloo" if 0 < gpus < 1 < per_gpu(gpus) else None


class _Backend(TorchConfig().backend_cls):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        group = worker_group.execute_single(0, ray.util.get_current_placement_group)
        try:
            self.connect(worker_group, backend_config)
        except Exception:
            # Otherwise Ray Train would keep the CPUs and GPUs, and the next start would wait for them.
            remove_placement_group(group)
            raise

    def connect(self, worker_group: Any, backend_config: TorchConfig) -> None:
        worker_group.execute(choose_gloo_interface)
        # NCCL fails in a worker without a usable GPU; with gloo the worker uses its CPU (`device.usable`).
        if backend_config.backend != "gloo" and not all(worker_group.execute(torch.cuda.is_available)):
            backend_config = replace(backend_config, backend="gloo")
        super().on_start(worker_group, backend_config)


class ClusterTorchConfig(TorchConfig):  # type: ignore[misc]
    """Connects workers by the network interface of their node, with NCCL only if all have a usable GPU."""

    @property
    def backend_cls(self) -> type:
        return _Backend


@dataclass(frozen=True)
class TrainRun(Generic[Job, Result]):
    """The Ray Train run `storage`/`name`, in which each rank calls `worker` on the job.

    job: fetched once by each node. criterion: the metric that ranks checkpoints. callbacks: Ray Train calls
    them on each report. folders: the folders that each node must see.
    """

    worker: Callable[[Job, Context], Result]
    job: Job
    workers: Workers
    scale: ScaleConfig
    criterion: Criterion
    filesystem: fs.FileSystem
    storage: str
    name: str
    callbacks: Sequence[ray.train.UserCallback] = ()
    folders: tuple[Landmarks, ...] = ()

    @property
    def folder(self) -> str:
        return f"{self.storage}/{self.name}"

    def trainer(self, began: "Began", count: int) -> TorchTrainer:
        """A trainer with `count` workers."""
        return TorchTrainer(
            _start_worker,
            train_loop_config={"run": replace(self, job=None, callbacks=()), "began": began},  # type: ignore[arg-type]
            scaling_config=ray.train.ScalingConfig(
                num_workers=count,
                use_gpu=self.workers.gpu,
                resources_per_worker=self.workers.resources,
            ),
            torch_config=ClusterTorchConfig(backend_for(self.workers.gpus), timeout_s=self.scale.timeout_s),
            run_config=ray.train.RunConfig(
                name=self.name,
                storage_path=self.storage,
                storage_filesystem=self.filesystem,
                failure_config=ray.train.FailureConfig(  # no restart by Ray Train: see `Restarts`
                    0, max_preemption_failures=0, controller_failure_limit=0
                ),
                # Ray Train also keeps the newest checkpoint.
                checkpoint_config=ray.train.CheckpointConfig(
                    num_to_keep=KEPT,
                    checkpoint_score_attribute=self.criterion.name,
                    checkpoint_score_order=self.criterion.order,
                ),
                callbacks=list(self.callbacks),
                # Workers of a local Ray inherit COMPUTE from this process.
                worker_runtime_env={"env_vars": COMPUTE} if can_grow() else {},
            ),
        )


class Began(NamedTuple):
    """Values that all workers of a command share, also after a restart.

    job: Ray's reference to the job. at: Unix time at which the stage began. command: a random id.
    """

    mailbox: Any
    job: Any
    at: float
    command: str


def _start_worker(config: dict[str, Any]) -> Any:
    """Trains on one worker. Rank 0 owns the lease on the run, since workers can outlive a killed driver."""
    run: TrainRun[Any, Any] = config["run"]
    began: Began = config["began"]
    began.mailbox.hold.remote(ray.util.get_current_placement_group())
    quiet_logs()
    require_on_this_node(run.folders)
    torch.set_num_threads(run.workers.cpus)
    job = ray.get(began.job)
    if (warning := unusable_gpu()) is not None:
        began.mailbox.say.remote(warning)
    context = RayContext(run.filesystem, run.folder, run.criterion, began.mailbox, began.at)
    context.gpu_share, context.elastic = run.workers.gpus, run.workers.least < run.workers.most
    try:
        if context.rank > 0:
            return run.worker(job, context)
        began.mailbox.started.remote(context.world_size)
        what = f"stage {display_path(run.filesystem, run.folder)}"
        waits_s = float(run.scale.timeout_s)  # longest wait for workers of an earlier command to end
        with Lease(run.filesystem, run.folder, what, wait_s=waits_s, group=began.command) as lease:
            context.check = lease.check
            return run.worker(job, context)
    except Resized:
        return RESIZED
    except (OSError, LeaseError) as error:
        cause = error.__cause__ if isinstance(error, LeaseError) else error
        if not isinstance(cause, OSError):
            raise
        # The storage or this node's own disk failed.
        raise OSError(f"{cause}, on node {ray.util.get_node_ip_address()}") from None


def run_training(run: TrainRun[Job, Result], display: Display) -> Result:
    """Runs the workers and returns what rank 0 returned. Raises StorageFailed or UserError.

    Workers that fail start again from the newest checkpoint, as often as `Restarts` allows.
    """
    # Ray Train's controller reads these variables. `trainer` sets the time limit of the process group.
    os.environ["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"] = str(run.scale.timeout_s)
    os.environ["RAY_TRAIN_COLLECTIVE_TIMEOUT_S"] = str(run.scale.timeout_s)
    began = Began(start_mailbox(), ray.put(run.job), time.time(), uuid4().hex)
    restarts = Restarts(run.filesystem, run.folder, run.name, run.scale)
    size = Size(run.workers)
    watch = _Watch(began.mailbox, display, size)
    try:
        with own_interrupts():
            while True:
                remove_broken_snapshot(run.filesystem, run.folder)
                try:
                    result: Result = run.trainer(began, size.start()).fit().return_value
                    if result != RESIZED:
                        break
                    began.mailbox.ended.remote(None)
                except ray.train.TrainingFailedError as error:
                    if cause_named(error, NOT_PLACED) is not None:
                        size.not_placed()
                    began.mailbox.ended.remote(restarts.line_of(error))
    except KeyboardInterrupt:
        if watch.failed is None:
            raise
    finally:
        watch.stop()
        size.request(0)
        end_mailbox(began.mailbox)
    if watch.failed is not None:
        raise watch.failed
    return result


@contextmanager
def own_interrupts() -> Iterator[None]:
    """Makes Ctrl-C raise KeyboardInterrupt in and after the block, though Ray Train sets its own handler."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        signal.signal(signal.SIGINT, before)


class _Watch:
    """A thread that shows what rank 0 sends to the mailbox, and reports when workers wait for free nodes.

    It tells the workers of an elastic run to end at their next checkpoint if there is room for more.

    failed: the exception that the display raised, which comes from a user's callback. It interrupts training.
    """

    def __init__(self, mailbox: Any, display: Display, size: Size) -> None:
        self.mailbox, self.display, self.size = mailbox, display, size
        self.failed: BaseException | None = None
        self._said_at = time.monotonic()  # when workers last ran or were last reported to wait
        self._main = threading.current_thread() is threading.main_thread()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        try:
            self._thread.join()
        except KeyboardInterrupt:  # raised by `_run` for a training that has ended meanwhile
            if self.failed is None:
                raise

    def _run(self) -> None:
        last = False
        while not last:
            last = self._ended.wait(POLL_S)  # one more read after the end, for the last messages
            try:
                progress, news, waits = ray.get(self.mailbox.read.remote(), timeout=5)
                news += self.waiting(waits and not last)
                if not waits and not last and self.size.grows():
                    self.mailbox.resize.remote()
            except (ray.exceptions.RayError, TimeoutError):
                continue  # training continues without a display
            try:
                for item in news:
                    if isinstance(item, str):
                        self.display.say(item)
                    else:
                        self.display.record(item)
            except BaseException as error:  # such as SystemExit from a callback
                self.failed = error
                if self._main and not last:  # outside the main thread, Ray Train gets no interrupt
                    _thread.interrupt_main()
                return
            if progress[0]:
                self.display.show(*progress)

    def waiting(self, waits: bool) -> list[str]:
        """One message after each WAIT_S for which the workers wait, otherwise none."""
        due = time.monotonic() - self._said_at >= WAIT_S
        if due or not waits:
            self._said_at = time.monotonic()
        if not (due and waits):
            return []
        return [
            f"waits for {self.size.workers} to start; nodes: {listed(living_nodes())}; free: {free_now()}"
        ]


def remove_broken_snapshot(filesystem: fs.FileSystem, run: str) -> None:
    """Removes Ray Train's list of a run's checkpoints if it is damaged or names a missing checkpoint.

    Ray Train rewrites the list in place, and cannot resume from a damaged list or one of another Ray version.
    Training resumes from the checkpoints themselves.
    """
    path = f"{run}/{SNAPSHOT}"
    if filesystem.get_file_info(path).type != fs.FileType.File:
        return
    kept = {folder.rpartition("/")[2] for folder in by_age(filesystem, run)}
    try:
        state = json.loads(read_bytes(filesystem, path))
        names = [result["checkpoint_dir_name"] for result in state["checkpoint_results"]]
        whole = state["ray_version"] == ray.__version__ and kept.issuperset(names)
    except (ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        filesystem.delete_file(path)
