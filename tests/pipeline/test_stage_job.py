"""What the workers of a stage get: rows in memory or a stream, moved images, the bank if a prior reads it."""

import itertools
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pyarrow import fs
from torch import Tensor

from npdraw_dist.config.load import resolve, with_changes
from npdraw_dist.config.schema import TrainConfig
from npdraw_dist.core.parts import Batch, PartBank, PartSequence
from npdraw_dist.data import parses
from npdraw_dist.data.parses import Parses, RowRange, ShardFile
from npdraw_dist.parse.parser import Parser
from npdraw_dist.pipeline import prior, stage_job
from npdraw_dist.pipeline.stage_job import moved, moves
from npdraw_dist.pipeline.store import Store
from npdraw_dist.training.feed import Share, StreamFeed
from tests.helpers.in_process import Stopped
from tests.helpers.runs import tiny
from tests.helpers.tiny_models import same, seeded

LOCAL = fs.LocalFileSystem()


def test_data_that_fit_the_cache_are_not_streamed() -> None:
    # A row is 28 * 28 + 36 * (1 + 2 + 2) = 964 bytes, so 1 MB holds 1,087.7 of them.
    for cache_mb, rows, streamed in ((1, 1087, False), (1, 1088, True), (0, 127, False)):  # 127: no batch
        experiment = tiny(cache_mb=cache_mb)
        assert stage_job.is_streamed(experiment, "prior", rows) is streamed


def test_a_stream_mixes_rows_of_many_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first 5,000 rows of 40 files of 1,000."""
    every = tuple(ShardFile(str(number), 1000) for number in range(40))
    monkeypatch.setattr(stage_job, "SHUFFLE_BYTES", 1 << 20)
    monkeypatch.setattr(stage_job, "SHUFFLE_BYTES_EACH", 0)
    monkeypatch.setattr(parses, "READ_BYTES", 256 << 10)
    share = Share(tiny().train.batch_size, 64, 0)
    feed = stage_job.make_feed(Parses(every, (LOCAL, "data")), share, stage_job.row_bytes(tiny()))
    assert isinstance(feed, StreamFeed)
    read: list[RowRange] = []

    monkeypatch.setattr(Parses, "_batch", lambda self, piece: read.append(piece))
    list(feed.read(np.random.default_rng(0).permutation(len(feed.groups)), [(0, 5000)]))
    assert sum(piece.stop - piece.start for piece in read) == 5000
    assert 12 <= len({piece.path for piece in read}) <= 21


def test_a_prior_that_reads_the_parts_gets_the_bank(
    run_in_process: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(run_in_process, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "prior")
    store = Store.open(str(tmp_path), "run")
    experiment = with_changes(store.config(), {"prior": {"table": "factorised"}})
    started: list[Any] = []

    def train(*arguments: Any) -> None:
        started.extend(arguments)
        raise Stopped

    monkeypatch.setattr(prior, "run_stage", train)
    with pytest.raises(Stopped):
        prior.run(experiment, store)
    *_, make_objective, start, _ = started
    found = make_objective(experiment, start).prior.drawn.look.bank_parts
    assert torch.equal(found, PartBank.load(tmp_path / "run" / "bank" / "bank.safetensors").parts)


def run(images: Tensor, seed: int = 0, **settings: Any) -> Tensor:
    values = {"augmented": 1.0} | settings
    return moved(images, TrainConfig(**values), torch.Generator().manual_seed(seed))


def dot(row: int, column: int) -> Tensor:
    image = torch.zeros(64, 1, 21, 23, dtype=torch.uint8)
    image[:, :, row, column] = 255
    return image


def centres(images: Tensor) -> Tensor:
    """(B, 2): the centre of mass (row, column) of each image."""
    weight = images[:, 0].double() / images.double().sum((1, 2, 3))[:, None, None]
    rows, columns = torch.arange(images.shape[2]), torch.arange(images.shape[3])
    return torch.stack([(weight.sum(2) * rows).sum(1), (weight.sum(1) * columns).sum(1)], 1)


def test_a_rotation_keeps_distances_and_its_angle() -> None:
    places = centres(run(dot(10, 17), rotate=30)) - torch.tensor([10, 11])
    assert (places.norm(dim=1) - 6).abs().max() < 0.3
    angle = torch.atan2(places[:, 0], places[:, 1]).rad2deg()
    assert float(angle.abs().max()) < 33
    assert float(angle.max()) > 20
    assert float(angle.min()) < -20


def test_stretching_and_shear_keep_the_centre() -> None:
    far = centres(run(dot(10, 17), stretch=0.3)) - torch.tensor([10, 11])
    assert float(far[:, 0].abs().max()) < 0.1
    assert 6 / 1.42 < float(far[:, 1].min()) < 5
    assert 7 < float(far[:, 1].max()) < 6 * 1.42
    leaning = centres(run(dot(16, 11), shear=0.5)) - torch.tensor([10, 11])
    assert float((leaning[:, 0] - 6).abs().max()) < 0.3
    assert 2 < float(leaning[:, 1].abs().max()) < 3.4


def test_a_share_of_the_images_moves_by_the_seed() -> None:
    images = dot(10, 10)
    assert torch.equal(run(images), images)  # no limit moves nothing
    a, b = (run(images, augmented=0.5, shift=3) for _ in range(2))
    assert torch.equal(a, b)
    assert not torch.equal(a, run(images, 1, augmented=0.5, shift=3))
    changed = int((a != images).flatten(1).any(1).sum())
    assert 16 < changed < 48


def test_a_negative_on_white_is_moved_like_the_image_on_black() -> None:
    images = torch.randint(256, (16, 3, 9, 12)).to(torch.uint8)
    settings = TrainConfig(augmented=0.7, shift=4, rotate=30, stretch=0.3, shear=0.3)
    black = moved(images, settings, torch.Generator().manual_seed(0))
    white = moved(255 - images, settings, torch.Generator().manual_seed(0), 1.0)
    assert torch.equal(white, 255 - black)


@pytest.mark.parametrize("width", [12, 7])
def test_a_mirrored_image_is_exact_and_half_of_them_are(width: int) -> None:
    images = torch.randint(256, (64, 3, 9, width)).to(torch.uint8)
    new = run(images, mirror=0.5)
    mirrored = (new == images.flip(3)).flatten(1).all(1)
    assert ((new == images).flatten(1).all(1) ^ mirrored).all()
    assert 16 < int(mirrored.sum()) < 48


@pytest.mark.parametrize("background", [0.0, 1.0])
def test_whole_pixels_are_shifted_exactly(background: float) -> None:
    images = torch.randint(256, (64, 3, 10, 12)).to(torch.uint8)
    settings = TrainConfig(augmented=1, shift=2)
    new = moved(images, settings, torch.Generator().manual_seed(0), background)
    framed = F.pad(images, (2, 2, 2, 2), value=255 * background)
    found = {}
    for down, right in itertools.product(range(5), range(5)):
        equal = (new == framed[:, :, down : down + 10, right : right + 12]).flatten(1).all(1)
        found[down, right] = int(equal.sum())
    assert sum(found.values()) == 64
    assert sum(number > 0 for number in found.values()) > 12


SMALL: dict[str, Any] = {"grid": {"patch": 7, "stride": 7}, "bank": {"size": 6}}


def images(n: int = 32) -> Tensor:
    return torch.randint(256, (n, 1, 28, 28), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def test_a_moved_image_has_the_parse_of_what_is_seen() -> None:
    own = {"parse": {"order": "path"}, "train": {"augmented": 0.5, "shift": 2}}
    experiment = resolve("digits", None, SMALL | own)
    bank = PartBank(torch.rand(6, 1, 7, 7, generator=seeded(3)))
    augment, parser = moves(experiment, bank, "vae"), Parser.of(experiment, bank)
    assert augment is not None
    batch = Batch.of(images(), parser(images()).z)
    found = augment(batch, 0.5, seeded(3))
    changed = (found.images != batch.images).flatten(1).any(1)
    assert 4 < int(changed.sum()) < 28
    assert same(found.z, parser(found.images).z)
    assert (found.what != batch.what)[changed].any()
    assert torch.equal(found.what[~changed], batch.what[~changed])


@pytest.mark.parametrize("stage", ["prior", "vae"])
def test_images_at_the_end_of_the_budget_are_not_moved(stage: str) -> None:
    train = {"augmented": 1.0, "shift": 2}
    own = {stage: {"images": 1000, "plain_images": 250}}
    experiment = resolve("digits", None, {"model": {"kind": "vae"}, "train": train, **own})
    augment = moves(experiment, None, stage)
    assert augment is not None
    assert moves(with_changes(experiment, {"train": {"augmented": 0.0}}), None, stage) is None
    batch = Batch.of(images(), PartSequence.empty(32))
    assert not torch.equal(augment(batch, 0.74, seeded(3)).images, batch.images)
    assert augment(batch, 0.75, seeded(3)) is batch


def test_on_white_moved_images_have_no_black_edge() -> None:
    white = {"grid": SMALL["grid"] | {"background": "white"}, "bank": SMALL["bank"]}
    experiment = resolve("digits", None, white | {"train": {"augmented": 1.0, "shift": 4}})
    bank = PartBank(torch.rand(6, 1, 7, 7, generator=seeded(3)))
    augment = moves(experiment, bank, "vae")
    assert augment is not None
    plain = torch.full((32, 1, 28, 28), 255, dtype=torch.uint8)
    found = augment(Batch.of(plain, Parser.of(experiment, bank)(plain).z), 0.0, seeded(3))
    assert (found.images == 255).all()
    assert not found.whether.any()
