"""Many shards are read as fewer, with the same rows in the same order."""

import numpy as np
import pytest

from npdraw_dist.data import shards as module
from npdraw_dist.data.rows import Reject, Rows
from npdraw_dist.data.shards import FEW, MOST_BYTES
from tests.helpers.many_shards import DATA, many_shards


def test_few_shards_stay_as_they_are() -> None:
    shards = many_shards(2 * FEW - 1).shards("train")
    assert [shard.name for shard in shards[-2:]] == ["train-02045", "train-02046"]
    assert [len(shard.read()) for shard in shards[:2]] == [2, 2]
    assert many_shards(5).shards("valid") == []


@pytest.mark.parametrize(("count", "most", "each"), [(2 * FEW, 100, 2), (50 * FEW + 17, 7, 7)])
def test_merged_shards_have_all_rows_in_their_order(
    count: int, most: int, each: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_BYTES", most * 4 * DATA.shard_rows)
    found = many_shards(count, flawed=True).shards("train")
    assert len(found) == -(-count // each)
    assert len({shard.name for shard in found}) == len(found)
    assert all(shard.name.endswith(f"x{each}") and shard.split == "train" for shard in found)
    ids = [name for shard in found for name in shard.read().ids]
    assert ids == [f"{n}-{i}" for n in range(count) for i in range(2)]
    rows = found[1].read()
    assert [reject.id for reject in rows.rejects] == [f"bad-{n}" for n in range(each, 2 * each)]
    assert rows.left_out == {"blank": each}
    assert rows.images[:, 0, 0, 0].tolist() == [n % 256 for n in range(each, 2 * each) for _ in range(2)]


def test_an_id_of_two_merged_shards_stays_once_and_unknown_labels_are_minus_one() -> None:
    images = np.zeros((2, 1, 2, 2), np.uint8)
    one, two = Rows(["a", "b"], images, np.array([3, 4])), Rows(["b", "c"], images + 9)
    rows = Rows.cat([one, two])
    assert rows.ids == ["a", "b", "c"]
    assert rows.images[:, 0, 0, 0].tolist() == [0, 0, 9]
    assert rows.labels is not None
    assert rows.labels.tolist() == [3, 4, -1]
    assert rows.rejects == [Reject("b", "duplicate id")]
    assert Rows.cat([Rows(["a", "b"], images), Rows([], images[:0])]).labels is None


def test_a_merged_shard_fits_in_a_tasks_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FEW", 8)
    large = DATA.model_copy(update={"image_size": 64, "channels": 3})
    shards = many_shards(1000, data=large).shards("train")
    assert len(shards) == 1000 // max(MOST_BYTES // (64 * 64 * 3 * 2048), 1)
    assert len(many_shards(1000, data=DATA.model_copy(update={"image_size": 8})).shards("train")) == 8
