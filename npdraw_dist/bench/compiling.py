"""Section `compile`: the VAE step with `train.compile` against the plain one. A GPU then replays CUDA graphs.

Each is in a process of its own. Compiling takes a minute or more.
"""

from contextlib import ExitStack

import torch

from npdraw_dist.bench.bench_model import BenchModel
from npdraw_dist.bench.trainer import Trainer
from npdraw_dist.bench.training_step import REPEATS, median_steps
from npdraw_dist.bench.worker_process import WorkerProcess
from npdraw_dist.bench.workload import Figures, Workload
from npdraw_dist.training.workers import has_compiler


def run(work: Workload) -> Figures:
    """`compile_speedup`: the plain step's time over the compiled one's. `compile_s`: of its first steps.

    Nothing where there is no C++ compiler.
    """
    if not has_compiler():
        return {}
    size, threads = work.experiment.train.batch_size, torch.get_num_threads()
    subject = BenchModel.of(work, size)
    kinds = ("vae", "compiled")
    with ExitStack() as stack:
        trainers = {
            kind: stack.enter_context(WorkerProcess(Trainer, subject, kind, threads)) for kind in kinds
        }
        for trainer in trainers.values():
            trainer.wait()
        seconds = median_steps(trainers, kinds, size, REPEATS)
        return {
            "compile_speedup": seconds["vae"] / seconds["compiled"],
            "compile_s": trainers["compiled"].call("seconds_to_start"),
        }
