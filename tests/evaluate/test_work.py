"""How a split is cut into work: the same batches under the same keys, on any actor. N images."""

from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import numpy as np
import pytest

from npdraw_dist.config.schema import ScaleConfig
from npdraw_dist.data.rows import Rows
from npdraw_dist.data.shards import Piece, Shard
from npdraw_dist.data.splits import Split, unit_hash
from npdraw_dist.distributed.tasks import Pool
from npdraw_dist.evaluate.work import Found, ShardSlice, in_batch_order, plan_work, pool_of
from npdraw_dist.pipeline.scores import BATCH
from npdraw_dist.system.errors import UserError


def rows(n: int) -> Rows:
    images = np.arange(n, dtype=np.uint8)[:, None, None, None]
    return Rows([f"image-{i}" for i in range(n)], images)


def numbers(n: int, name: str = "test-00000") -> Shard:
    """A shard of n images, of which each is its number."""
    return Shard(name, "test", Piece(0, ("test",), (partial(_read, n),)))


def _read(n: int, splits: Collection[Split]) -> dict[Split, Rows]:
    return {"test": rows(n)} if "test" in splits else {}


def batches_by_key(n: int, parts: int, threshold: float = 1.0) -> dict[tuple[int, int], list[int]]:
    """key -> numbers of the images there, over all parts; no key comes twice."""
    found: dict[tuple[int, int], list[int]] = {}
    for part in range(parts):
        for key, some in ShardSlice(4, numbers(n), part, parts, threshold).batches(rows(n)):
            assert some.ids == [f"image-{i}" for i in some.images.flatten().tolist()]
            assert key not in found
            found[key] = some.images.flatten().tolist()
    return found


@pytest.mark.parametrize("n", [1, BATCH, BATCH + 1, 100])
def test_any_number_of_parts_makes_the_same_batches(n: int) -> None:
    for parts in (1, 2, 3, 9):
        found = batches_by_key(n, parts)
        assert found == batches_by_key(n, 1)
        assert [number for key in sorted(found) for number in found[key]] == list(range(n))
        assert {len(batch) for key, batch in found.items() if key != max(found)} <= {BATCH}


@pytest.mark.parametrize(("actors", "shards"), [(1, 1), (5, 2), (2, 7)])
def test_every_actor_has_work_and_every_batch_an_actor(actors: int, shards: int) -> None:
    found = [numbers(70, f"test-{i}") for i in range(shards)]
    slices, images = plan_work(found, None, None, actors)
    assert len(slices) >= 2 * actors
    assert images == 0
    keys = [key for item in slices for key, _ in item.batches(item.shard.read())]
    assert sorted(keys) == [(shard, batch) for shard in range(shards) for batch in range(3)]


def test_a_limit_takes_the_images_with_the_smallest_hashes_of_all_shards() -> None:
    hashes = sorted((unit_hash(0, "evaluate", f"image-{i}"), i) for i in range(100))
    found = batches_by_key(100, 3, hashes[39][0])
    chosen = [number for key in sorted(found) for number in found[key]]
    assert chosen == sorted(i for _, i in hashes[:40])
    assert [len(found[key]) for key in sorted(found)] == [32, 8]
    shards = [numbers(100, f"test-{i}") for i in range(2)]  # both have the ids of the first
    slices, images = plan_work(shards, None, 20, 1)
    assert images == 20
    for shard in range(2):
        items = [item for item in slices if item.number == shard]
        taken = [name for item in items for _, some in item.batches(rows(100)) for name in some.ids]
        assert sorted(taken) == sorted(f"image-{i}" for _, i in hashes[:10])


MIXED = ((8, 2), 6)
THREE = ((4, 1),) * 3  # three GPUs on three nodes give no actor with two


@pytest.mark.parametrize(
    ("each", "scale", "sized", "pool"),
    [
        (MIXED, {}, False, Pool(2, 1)),
        (MIXED, {"use_gpu": False}, False, Pool(14, 0)),
        (MIXED, {"gpus_per_worker": 0.25}, False, Pool(8, 0.25)),
        (MIXED, {"gpus_per_worker": 0.25, "num_workers": 3}, True, Pool(3, 0.25)),
        (THREE, {}, False, Pool(3, 1)),
    ],
)
def test_the_actors_that_fit_on_the_nodes(
    cluster: Callable[..., None], each: Any, scale: dict[str, Any], sized: bool, pool: Pool
) -> None:
    cluster(*each)
    assert pool_of(ScaleConfig(**scale), sized) == pool
    cluster(8)
    with pytest.raises(UserError, match="1 worker of 1 CPU and a GPU"):
        pool_of(ScaleConfig(use_gpu=True), sized)


def test_results_come_in_the_order_of_the_batches() -> None:
    parts = {key: {"x": np.array([number])} for number, key in enumerate([(0, 9), (0, 10), (1, 0)])}
    samples = {(-1, number): {"y": np.array([number])} for number in (1, 0)}
    found = [Found(values={key: parts[key] for key in ((1, 0), (0, 10))}), Found(), Found(values=samples)]
    values = in_batch_order([*found, Found(values={(0, 9): parts[0, 9]})])
    assert {name: tensor.tolist() for name, tensor in values.items()} == {"x": [0, 1, 2], "y": [0, 1]}
