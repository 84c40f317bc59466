"""Every node must see the folders of a run, at the start or when it joins."""

import os
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import ray
import torch
from pyarrow import fs

from npdraw_dist.distributed import nodes
from npdraw_dist.distributed.tasks import Pool, map_items
from npdraw_dist.pipeline.store import Store
from npdraw_dist.system.errors import UserError
from npdraw_dist.system.landmarks import BlindNode, Landmarks


def known(root: Path) -> Landmarks:
    root.mkdir(exist_ok=True)
    (root / "a.png").write_text("a.png")
    found = Landmarks.of("the data", "--data.path", str(root), "a.png")
    assert found is not None
    return found


class Pretended:
    """Nodes 10.0.0.1, 10.0.0.2, ... in place of Ray's, which give these `answers` to their tasks."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *answers: list[str | None] | Exception) -> None:
        self.answers = answers
        self.nodes: list[Any] = []
        listed = [
            {"NodeID": str(number), "NodeManagerAddress": f"10.0.0.{number}", "Alive": True}
            for number in range(1, len(answers) + 1)
        ]
        monkeypatch.setattr(ray, "nodes", lambda: listed)
        monkeypatch.setattr(ray, "remote", lambda **_: lambda function: self)
        monkeypatch.setattr(nodes, "NodeAffinitySchedulingStrategy", lambda node, soft: node)
        monkeypatch.setattr(ray, "wait", lambda tasks, **_: (tasks, []))
        monkeypatch.setattr(ray, "get", self.get)

    def options(self, scheduling_strategy: str) -> "Pretended":
        self.nodes.append(scheduling_strategy)
        return self

    def remote(self, folders: object) -> int:
        return len(self.nodes) - 1

    def get(self, number: int) -> list[str | None]:
        answer = self.answers[number]
        if isinstance(answer, Exception):
            raise answer
        return answer


def test_each_node_looks_and_the_blind_ones_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folders = [known(tmp_path / "run"), known(tmp_path / "data")]
    pretended = Pretended(monkeypatch, [None, None], [None, ""], ray.exceptions.RayError("died"), [None, ""])
    message = rf"the data {tmp_path}/data cannot be read from 10\.0\.0\.2, 10\.0\.0\.4;"
    with pytest.raises(UserError, match=message):
        nodes.require_shared(folders)
    assert pretended.nodes == ["1", "2", "3", "4"]


def test_nodes_that_see_all_and_one_alone_are_not_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folders = [known(tmp_path / "run")]
    Pretended(monkeypatch, [None], [None])
    nodes.require_shared(folders)
    alone = Pretended(monkeypatch, [""])
    nodes.require_shared(folders)
    assert alone.nodes == []


class Numbered(NamedTuple):
    number: int


def double(item: Numbered) -> int:
    return 2 * item.number


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("pool", [None, pytest.param(Pool(), marks=pytest.mark.slow)])
def test_a_worker_of_the_data_stages_that_does_not_see_them_ends_the_stage(
    pool: Pool | None, tmp_path: Path
) -> None:
    """At the first item, since a node without the data would fail at many items in no time."""
    seen, unseen = known(tmp_path / "run"), known(tmp_path / "data")
    assert set(map_items([Numbered(1), Numbered(2)], double, pool, [seen, None, unseen])) == {2, 4}
    lost = known(tmp_path / "lost")
    (tmp_path / "lost" / "a.png").unlink()
    message = rf"the data {tmp_path}/lost cannot be read from \d+\.\d+\.\d+\.\d+;"
    with pytest.raises(BlindNode, match=message):
        next(map_items([Numbered(n) for n in range(50)], double, pool, [seen, lost]))


def waits(item: int) -> tuple[int, float, float]:
    """Waits as for a store; returns the process and the times before and after."""
    began = time.time()
    time.sleep(0.5)
    return os.getpid(), began, time.time()


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_an_actor_has_several_shards_of_a_store_at_once() -> None:
    found = [result for result in map_items(range(8), waits, Pool(), [None]) if isinstance(result, tuple)]
    assert len(found) == 8
    together = [
        sum(pid == other and began <= at < ended for other, began, ended in found) for pid, at, _ in found
    ]
    assert max(together) >= 2


def test_a_training_worker_says_its_node(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "10.0.0.2")
    folders = [known(tmp_path / "run"), known(tmp_path / "other")]
    nodes.require_on_this_node(folders[:1])
    (tmp_path / "other" / "a.png").unlink()
    with pytest.raises(BlindNode, match=rf"the data {tmp_path}/other cannot be read from 10\.0\.0\.2;"):
        nodes.require_on_this_node(folders)


def test_a_gpu_that_pytorch_cannot_use_gives_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "10.0.0.2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(ray, "get_gpu_ids", list)
    assert nodes.unusable_gpu() is None
    monkeypatch.setattr(ray, "get_gpu_ids", lambda: [0])
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    warning = str(nodes.unusable_gpu())
    assert "10.0.0.2 trains on its CPU" in warning
    assert "CUDA 13.0" in warning
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "built for CPUs" in str(nodes.unusable_gpu())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert nodes.unusable_gpu() is None


def test_the_config_is_the_landmark_of_a_run_and_of_what_lies_below_it(tmp_path: Path) -> None:
    stores = [Store(fs.LocalFileSystem(), str(tmp_path / path)) for path in ("run", "run/cache/bank-1")]
    assert stores[0].landmarks() == []
    (tmp_path / "run" / "cache" / "bank-1").mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").write_text("seed: 0\n")
    landmarks = [found for store in stores for found in store.landmarks()]
    assert [found.difference() for found in landmarks] == [None, None]
    (tmp_path / "run" / "config.yaml").unlink()
    assert [found.difference() for found in landmarks] == ["", ""]
