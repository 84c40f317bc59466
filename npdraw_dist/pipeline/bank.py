"""Stage `bank`: patches of the training images, clustered; each centroid becomes a real patch.

A run that starts from a trained model has its parts, and others beside them if bank.size is larger.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from npdraw_dist.bank.build import BankFacts, build_bank, build_shared_bank
from npdraw_dist.bank.extend import extend_bank
from npdraw_dist.bank.patches import ALL, Drawn, LostPatches, Reservoir, draw, extract
from npdraw_dist.config.schema import Experiment
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.images import canvas_bytes
from npdraw_dist.core.parts import PartBank
from npdraw_dist.core.process import ray_runs
from npdraw_dist.data.map_shards import map_shards
from npdraw_dist.data.rejects import RejectLimit, RejectLine, reject_lines, write_rejects
from npdraw_dist.data.shards import Shard, Source
from npdraw_dist.measure.pictures import save_bank
from npdraw_dist.pipeline import inputs
from npdraw_dist.pipeline.gpu_task import has_gpu, on_gpu
from npdraw_dist.pipeline.models import source_parts, starts_from_model
from npdraw_dist.pipeline.progress import Show, console, stage_progress
from npdraw_dist.pipeline.store import Store, fingerprint_of, finished, required

if TYPE_CHECKING:
    from npdraw_dist.bank.ray_portions import RayPortions

STAGE = "bank"
PICTURES = ("bank/bank.png",)
# Shards, or up to twice as many, that are read first; fewer if they have more images than that.
PILOT, PILOT_IMAGES = 16, 100_000
PART_BYTES = 1 << 26  # of the patches that one actor holds, about
SHARED_BYTES = 1 << 27  # after the pilot, a larger sample goes to actors, if Ray runs
ATTEMPTS = 3  # readings of the images, if a node dies that holds patches


def run(experiment: Experiment, store: Store) -> dict[str, Any]:
    """Builds bank/ from the training split; returns its manifest."""
    if (manifest := finished(store, experiment, STAGE)) is not None:
        return manifest
    made_from = fingerprint_of(experiment, STAGE)
    for attempt in range(ATTEMPTS):
        started, cpu_started = time.perf_counter(), time.process_time()
        try:
            with ExitStack() as stack:
                with inputs.reading(experiment, store, STAGE) as data:
                    found = stack.enter_context(_collected(experiment, store, data.source))
                extracted = time.perf_counter()
                bank, facts = _cluster(experiment, found)
            break
        except LostPatches:
            if attempt + 1 == ATTEMPTS:
                raise
            console.print(f"{STAGE}: a process that held patches died; they are read again")
    done = time.perf_counter()
    with store.writing(STAGE, "bank.safetensors") as path:
        bank.save(path, {"fingerprint": made_from})
    with store.writing(STAGE, "bank.png") as path:
        save_bank(path, bank, facts.cluster_sizes)
    own_s = time.process_time() - cpu_started
    manifest = {
        "fingerprint": made_from,
        "data": data.source.facts(),
        "inputs": data.digest,
        **vars(facts),
        "patches_seen": found.seen,
        "images": found.images,
        "seconds": round(done - started, 2),
        "seconds_clustering": round(done - extracted, 2),
        "core_seconds": round(own_s + found.core_seconds + facts.actor_core_seconds, 2),
        "images_per_s": found.images / (done - started),
    }
    store.write_manifest(manifest, STAGE)
    return manifest


def describe(manifest: Mapping[str, Any]) -> str:
    """The stage's numbers in the table at the end of a run."""
    m = manifest
    return f"{m['k']} parts of {m['patches']:,} patches, objective {m['objective']:.3f}"


def load_bank(experiment: Experiment, store: Store, needed_by: str) -> PartBank:
    """The bank of a run. Raises UserError if the stage has not finished."""
    required(store, experiment, STAGE, needed_by)
    with store.reading(STAGE, "bank.safetensors") as path:
        return PartBank.load(path)


def _cluster(experiment: Experiment, found: "Collected") -> tuple[PartBank, BankFacts]:
    """The bank of the patches, by FAISS on a GPU of the cluster if it has one and may use it.

    Where FAISS is not installed, or is a build for CPUs, the CPU clusters there.
    """
    scale, settings, channels = experiment.scale, experiment.bank, experiment.data.shape[0]
    gpu = None if has_gpu(scale) else False
    if found.shared is not None:
        parts = found.shared.parts(settings.max_patches)
        return build_shared_bank(parts, channels, settings, experiment.seed, gpu)
    patches = found.patches
    if starts_from_model(experiment):
        return extend_bank(source_parts(experiment), patches, settings, experiment.seed)
    if (settings.shards or 1) > 1 and not scale.here:  # the actors hold the GPUs
        return build_bank(patches, channels, settings, experiment.seed, gpu)
    (bank, facts), elsewhere = on_gpu(scale, STAGE, _build, experiment, patches, gpu)
    return bank, replace(facts, actor_core_seconds=facts.actor_core_seconds + elsewhere)


def _build(
    device: torch.device, experiment: Experiment, patches: NDArray[np.uint8], gpu: bool | None
) -> tuple[PartBank, BankFacts]:
    """FAISS looks for the GPU itself: it can have one where torch is built for CPUs, and the reverse."""
    return build_bank(patches, experiment.data.shape[0], experiment.bank, experiment.seed, gpu)


@dataclass(frozen=True)
class Collected:
    """A seeded sample of the patches of all shards, (M, D) uint8. seen: patches that it was drawn from.

    images: those that were read. core_seconds: CPU seconds of other processes for it. shared: the actors that
    hold the sample, where `patches` (0, 0) has none.
    """

    patches: NDArray[np.uint8]
    seen: int
    images: int
    core_seconds: float
    shared: "RayPortions | None" = None


@contextmanager
def _collected(experiment: Experiment, store: Store, source: Source) -> Iterator[Collected]:
    """Samples the patches of all shards. The actors that hold them, if any, end with the block.

    Writes rejects.jsonl. Raises UserError on too many rejects, as soon as that is clear, and LostPatches.
    """
    shards = list(enumerate(source.shards("train")))
    total = source.count("train")
    first = min(max(PILOT_IMAGES * len(shards) // max(total or 0, 1), 1), PILOT)
    step = len(shards) // first if len(shards) > 2 * first else 1
    pilot, others = shards[::step], [shard for shard in shards if shard[0] % step]
    rows = RejectLimit(experiment.data, [shard for _, shard in shards], total)
    found = None
    try:
        with stage_progress(STAGE, total or 0) as show:
            found = _Collector(experiment, source, rows, show)
            if found.read(pilot) and others:
                # Only what may be in the sample leaves the other shards.
                share = len(pilot) / len(shards)
                limit = found.sample.limit(share)
                found.share_out(share)
                if found.read(others, limit=limit) and not found.is_exact(limit):
                    found.read(others, above=limit)
        write_rejects(store.filesystem, store.path(STAGE), found.rejects)
        found.rows.check()
        yield found.collected()
    finally:
        if found is not None and found.shared is not None:
            found.shared.close()


class _Collector:
    """Reads shards in tasks, and gathers rejects and counts here; their patches too, or in actors."""

    def __init__(self, experiment: Experiment, source: Source, rows: RejectLimit, show: Show) -> None:
        self.experiment, self.source, self.rows, self.show = experiment, source, rows, show
        self.sample = Reservoir(experiment.bank.max_patches)
        self.shared: RayPortions | None = None
        self.rejects: list[RejectLine] = []
        self.core_seconds = 0.0

    def read(self, shards: Sequence[tuple[int, Shard]], above: int = -1, limit: int = ALL) -> bool:
        """Offers the patches with keys in a range. False, and no more is read, if too many rows are bad.

        above: of shards that were read up to it before, which are not counted again.
        """
        work = PatchExtractor(self.experiment, above, limit, self.shared)
        for result in map_shards(shards, work, folders=[self.source.inputs().landmarks()]):
            if isinstance(result, UserError):
                raise result
            self.core_seconds += result.core_seconds if ray_runs() else 0.0
            self.sample.add(result.drawn)
            if above >= 0:
                continue
            self.rejects += result.rejects
            too_many = self.rows.add("train", result.images, len(result.rejects))
            self.show(self.rows.images)
            if too_many:
                return False
        return True

    def share_out(self, share: float) -> None:
        """Moves the patches into actors, if the sample of all shards, of which `share` was read, is large."""
        count = self._parts(share)
        if count < 2:
            return
        from npdraw_dist.bank.ray_portions import RayPortions

        self.shared = RayPortions(count, self.sample.likely(share))
        for number, drawn in enumerate(self.sample.give()):
            self.shared.add(-1 - number, drawn)

    def _parts(self, share: float) -> int:
        """The number of actors: one for PART_BYTES, but no more than work at once. 1: this process."""
        scale, settings = self.experiment.scale, self.experiment.bank
        if scale.here or not ray_runs() or starts_from_model(self.experiment):
            return 1
        size = self.sample.bytes_of_all(share)
        if size and settings.shards is not None:
            return settings.shards
        if size <= SHARED_BYTES:
            return 1
        from npdraw_dist.training.resources import living_nodes

        slots = sum(int(node.gpus) if has_gpu(scale) else node.cpus for node in living_nodes())
        return max(min(-(-size // PART_BYTES), slots), 2)

    def is_exact(self, limit: int) -> bool:
        """Whether nothing beyond `limit` is in the sample."""
        if self.shared is None:
            return self.sample.is_exact(limit)
        return limit >= ALL or self.shared.count(limit) >= self.sample.capacity

    def collected(self) -> Collected:
        """The sample. Raises UserError if there was no image."""
        if self.rows.images == 0:
            data = self.experiment.data
            raise UserError(
                f"data.source {data.source} has no training image (data.fraction {data.fraction:g}); raise it"
            )
        elsewhere = 0.0 if self.shared is None else self.shared.core_seconds()
        return Collected(
            self.sample.result(),
            self.sample.seen,
            self.rows.images,
            self.core_seconds + elsewhere,
            self.shared,
        )


@dataclass(frozen=True)
class ShardPatches:
    """drawn: patches of a shard. images: those that were read.

    core_seconds: CPU seconds of the thread meanwhile.
    """

    drawn: Drawn
    images: int
    rejects: list[RejectLine]
    core_seconds: float


@dataclass(frozen=True)
class PatchExtractor:
    """(number of a shard, shard) -> its patches with keys above `above`, and at most `limit`.

    They count as seen if `above` is -1, which lets all pass. With `shared` they go there, and the result has
    none.
    """

    experiment: Experiment
    above: int = -1
    limit: int = ALL
    shared: "RayPortions | None" = None

    def __call__(self, item: tuple[int, Shard]) -> ShardPatches:
        (index, shard), settings = item, self.experiment.bank
        cpu_started = time.thread_time()
        rows = shard.read()
        images = canvas_bytes(rows.images, self.experiment.grid.downscale)
        grid = self.experiment.canvas_grid
        patches = extract(images, grid, settings.min_energy)
        lines = reject_lines(rows.rejects, shard.name)
        drawn = draw(patches, index, self.experiment.seed, self.above, self.limit)
        if self.above >= 0:
            drawn = replace(drawn, seen=0)
        if self.shared is not None:
            self.shared.add(2 * index + (self.above >= 0), drawn)
            drawn = Drawn(drawn.keys[:0], drawn.patches[:0], drawn.seen)
        return ShardPatches(drawn, len(rows), lines, time.thread_time() - cpu_started)
