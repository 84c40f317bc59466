"""How a split is cut into work: the same batches at the same places, whoever takes them. N images."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from npdraw_dist.core.errors import UserError
from npdraw_dist.data.rows import Rows
from npdraw_dist.data.splits import unit_hash
from npdraw_dist.evaluate.pools import Pool, Portion, in_order, work_of
from npdraw_dist.pipeline.scores import BATCH


def rows(n: int) -> Rows:
    images = np.arange(n, dtype=np.uint8)[:, None, None, None]
    return Rows([f"image-{i}" for i in range(n)], images)


@dataclass(frozen=True)
class Numbers:
    """A shard of n images, of which each is its number."""

    n: int
    name: str = "test-00000"
    split: str = "test"

    def read(self) -> Rows:
        return rows(self.n)


@dataclass(frozen=True)
class Shards:
    sizes: tuple[int, ...]

    def shards(self, split: str) -> list[Numbers]:
        return [Numbers(n, f"{split}-{i}") for i, n in enumerate(self.sizes)]

    def count(self, split: str) -> int | None:
        return None

    def facts(self) -> dict[str, Any]:
        return {}


def placed(n: int, parts: int, threshold: float = 1.0) -> dict[tuple[int, int], list[int]]:
    """place -> numbers of the images there, over all parts; no place comes twice."""
    found: dict[tuple[int, int], list[int]] = {}
    for part in range(parts):
        for place, batch in Portion(4, Numbers(n), part, parts, threshold, 0).batches(rows(n)):
            assert place not in found
            found[place] = batch.flatten().tolist()
    return found


@pytest.mark.parametrize("n", [1, BATCH, BATCH + 1, 100])
@pytest.mark.parametrize("parts", [1, 2, 3, 9])
def test_any_number_of_parts_makes_the_same_batches(n: int, parts: int) -> None:
    found = placed(n, parts)
    assert found == placed(n, 1)
    assert [number for place in sorted(found) for number in found[place]] == list(range(n))
    assert {len(batch) for place, batch in found.items() if place != max(found)} <= {BATCH}


def test_a_limit_chooses_by_the_hash_of_the_id() -> None:
    hashes = sorted((unit_hash(0, "evaluate", f"image-{i}"), i) for i in range(100))
    found = placed(100, 3, hashes[39][0])
    chosen = [number for place in sorted(found) for number in found[place]]
    assert chosen == sorted(i for _, i in hashes[:40])
    assert [len(found[place]) for place in sorted(found)] == [32, 8]


@pytest.mark.parametrize(("actors", "shards"), [(1, 1), (2, 1), (5, 2), (2, 7)])
def test_every_actor_has_work_and_every_batch_an_actor(actors: int, shards: int) -> None:
    work = work_of(Shards((70,) * shards), "test", None, 0, Pool(actors, False))  # type: ignore[arg-type]
    assert len(work.portions) >= 2 * actors
    places = [place for portion in work.portions for place, _ in portion.batches(portion.shard.read())]
    assert sorted(places) == [(shard, batch) for shard in range(shards) for batch in range(3)]


def test_a_split_without_shards() -> None:
    with pytest.raises(UserError, match="no split 'valid'"):
        work_of(Shards(()), "valid", None, 0, Pool(1, False))  # type: ignore[arg-type]


def test_results_come_in_the_order_of_their_places() -> None:
    found: list[dict[str, Any]] = [{"x": {(1, 0): "c", (0, 10): "b"}}, {"x": {}}, {"x": {(0, 9): "a"}}]
    assert in_order(found, "x") == ["a", "b", "c"]
