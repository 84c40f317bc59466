"""What training and drawing are measured on: the experiment's model with a bank, and parsed images."""

from dataclasses import dataclass

import torch

from npdraw_dist.bench import machine
from npdraw_dist.bench.parsing import make_parser
from npdraw_dist.bench.workload import Workload
from npdraw_dist.config.load import with_changes
from npdraw_dist.config.schema import Experiment
from npdraw_dist.config.spec import ModelSpec
from npdraw_dist.core.images import canvas_bytes
from npdraw_dist.core.parts import Batch, PartBank
from npdraw_dist.nn.npdraw import NPDraw


@dataclass(frozen=True)
class BenchModel:
    """An experiment, the bank of its images, and some of these images with their parses."""

    experiment: Experiment
    bank: PartBank
    batch: Batch

    @classmethod
    def of(cls, work: Workload, size: int) -> "BenchModel":
        """`size` images; if the workload has fewer, the first ones are repeated."""
        parser = make_parser(work)
        images = work.images[torch.arange(size).numpy() % len(work.images)]
        z = parser(torch.from_numpy(canvas_bytes(images, work.experiment.grid.downscale))).z
        return cls(work.experiment, parser.bank, Batch.of(torch.from_numpy(images), z))

    def model(self, stem: str | None = None) -> NPDraw:
        """Untrained, on the device that there is. stem: another prior.stem; `conv` is the authors'."""
        torch.manual_seed(self.experiment.seed)
        changes = {} if stem is None else {"prior": {"stem": stem}}
        model = NPDraw(ModelSpec.of(with_changes(self.experiment, changes)))
        model.set_bank(self.bank)
        return model.to(machine.device())
