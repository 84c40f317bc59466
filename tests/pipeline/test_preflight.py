"""The checks before a run: its images, its earlier stages, and the workers and GPUs of a cluster."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
import torch

from npdraw_dist import train
from npdraw_dist.config.load import with_changes
from npdraw_dist.config.schema import STAGES, DataConfig, Experiment, ScaleConfig
from npdraw_dist.distributed import actors
from npdraw_dist.distributed.actors import has_gpu, on_gpu
from npdraw_dist.distributed.resources import Node, Workers
from npdraw_dist.distributed.start import OWN_RAY
from npdraw_dist.pipeline import data
from npdraw_dist.pipeline import run as pipeline
from npdraw_dist.pipeline.run import removed_if_refused
from npdraw_dist.pipeline.store import FOLDERS, Store, fingerprint_of
from npdraw_dist.system.errors import UserError
from tests.helpers.prepared import prepare
from tests.helpers.runs import IN_PROCESS, TINY, Refused, tiny

COUNTS = {"train": 60, "valid": 20, "test": 20}


def finish(store: Store, experiment: Experiment, *stages: str) -> None:
    """Leaves the manifests of finished stages."""
    for stage in stages:
        facts = {"fingerprint": fingerprint_of(experiment, stage), "splits": COUNTS}
        store.write_json(facts, FOLDERS[stage], "manifest.json")


def test_the_final_numbers_need_images_of_their_split(tmp_path: Path) -> None:
    """Prepared data keep their splits, whatever data.test_fraction says."""
    made = str(tmp_path / "set")
    prepare(DataConfig(test_fraction=0.0), 0, made, "parquet")
    prepared = tiny(source="parquet", path=made, image_size=28, channels=1, test_fraction=0.2)
    store = Store.open(str(tmp_path), "run")
    for experiment in (prepared, tiny(test_fraction=0.0)):
        with pytest.raises(UserError, match=r"in `npdraw prepare`\) or set --eval\.split valid$"):
            pipeline.check(experiment, store, STAGES)
    pipeline.check(with_changes(prepared, {"eval": {"split": "valid"}}), store, STAGES)


def knows(*vocabulary: str, condition: str = "class") -> Experiment:
    """A run that starts from a model with this vocabulary."""
    return with_changes(tiny(), {"prior": {"condition": condition, "vocabulary": vocabulary}})


def test_classes_that_the_model_does_not_know_are_refused_or_warned_of(
    capsys: pytest.CaptureFixture[str],
) -> None:
    pipeline.require_classes(knows("cat", "dog"), ["dog", "cat"])
    pipeline.require_classes(knows("cat", "dog"), [])
    assert capsys.readouterr().out == ""
    pipeline.require_classes(knows("cat", "dog"), ["bird", "dog", "newt"])
    warning = "warning: init.model knows no class bird, newt; their images are trained without a class"
    assert capsys.readouterr().out.strip() == warning
    for other in (knows("cat", "dog", condition="words"), tiny()):  # these take any
        pipeline.require_classes(other, ["bird"])
    digits = knows(*map(str, range(10)))
    with pytest.raises(
        UserError, match=r"knows the classes 0, 1, 2, 3, 4, \.\.\.; .* have bird, newt; rename"
    ):
        pipeline.require_classes(digits, ["bird", "newt"])


@pytest.mark.parametrize(("named", "refused"), [([], True), (["cat", "bird"], False)])
def test_classes_without_names_are_checked_once_the_images_are_read(
    named: list[str], refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Classes with names are checked before."""

    def read(*_: object) -> dict[str, object]:
        return {"splits": COUNTS, "source": {"classes": named}, "classes": named or ["0", "1"]}

    monkeypatch.setattr(data, "run", read)
    store, lease = Store.open(str(tmp_path), "run"), SimpleNamespace(check=lambda: None)
    with pytest.raises(UserError, match="have 0, 1; ") if refused else nullcontext():
        pipeline.run_stages(knows("cat", "dog"), store, ["data"], lease)  # type: ignore[arg-type]


def test_the_stages_that_have_to_run_before(tmp_path: Path) -> None:
    experiment, store = tiny(), Store.open(str(tmp_path), "run")
    pipeline.require_inputs(experiment, store, STAGES)
    with pytest.raises(UserError, match=r"needs data and parse, .* --stages data,parse,prior$"):
        pipeline.require_inputs(experiment, store, ["prior"])
    finish(store, experiment, "data", "parse")  # the prior reads only these
    pipeline.require_inputs(experiment, store, ["prior"])
    with pytest.raises(UserError, match=r"needs bank and prior, .* --stages bank,prior,vae$"):
        pipeline.require_inputs(experiment, store, ["vae"])
    finish(store, experiment, "bank", "prior")
    pipeline.require_inputs(experiment, store, ["vae", "sample"])
    baseline = with_changes(experiment, {"model": {"kind": "vae"}})
    with pytest.raises(UserError, match="needs data, which"):
        pipeline.require_inputs(baseline, Store.open(str(tmp_path), "other"), ["vae"])


def test_the_images_of_a_resumed_run_are_those_that_it_has_read(tmp_path: Path) -> None:
    experiment = tiny(source="mnist", path=str(tmp_path / "gone"))
    store = Store.open(str(tmp_path), "run")
    with pytest.raises(UserError, match="is no folder"):
        pipeline.check(experiment, store, STAGES)
    finish(store, experiment, "data")
    assert pipeline.read_counts(store) == COUNTS
    pipeline.check(experiment, store, STAGES[1:])
    many = with_changes(experiment, {"bank": {"size": 10_000}})
    finish(store, many, "data")
    with pytest.raises(UserError, match="60 training images of 36 places have at most 2,160 patches"):
        pipeline.check(many, store, ["bank"])


def test_a_refused_run_is_removed_if_it_holds_nothing(tmp_path: Path) -> None:
    stays = {
        "": False,
        "bank/bank.safetensors": False,
        "bank/manifest.json": True,
        "parses/.done/a.json": True,
        "data/.done/a.json": True,
        "data/.done/source.json": False,
        "data/manifest.json": False,  # the next stage has refused the config
        "data/rejects.jsonl": True,
        "vae/metrics.jsonl": True,
    }
    for number, file in enumerate(stays):
        store = Store.open(str(tmp_path), f"run{number}")
        assert store.claim(tiny())
        if file:
            store.write_json({}, *file.split("/"))
        with (
            pytest.raises(UserError, match="mistake"),
            store.lease() as lease,
            removed_if_refused(store, lease),
        ):
            raise UserError("a mistake")
        assert store.has() == stays[file], file


@pytest.mark.parametrize("existed", [False, True])
def test_a_refused_run_removes_only_a_folder_that_it_made(
    existed: bool, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise UserError("a mistake")

    if existed:
        (tmp_path / "run").mkdir()
    monkeypatch.setattr(pipeline, "run_stages", refuse)
    assert "a mistake" in refused(train.main, "--storage", str(tmp_path), "--name", "run", *TINY, *IN_PROCESS)
    assert (tmp_path / "run").exists() == existed


def test_what_needs_no_validation_image_runs_without_and_what_is_not_known_is_not_refused() -> None:
    counts = {"train": 60, "valid": 0, "test": 20}
    last = with_changes(tiny(), {"train": {"select": "last"}})
    pipeline.require_images(last, counts, ["prior", "vae"])
    with pytest.raises(UserError, match=r"train\.select best needs some"):
        pipeline.require_images(tiny(), counts, ["prior"])
    experiment = with_changes(tiny(), {"bank": {"size": 10_000}})
    pipeline.require_images(experiment, {"train": None, "valid": None, "test": None}, STAGES)
    pipeline.require_images(experiment, {}, STAGES)


Cluster = Callable[..., None]


@pytest.fixture
def cluster(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """A cluster that is joined."""
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    return cluster


def test_the_workers_of_a_cluster_are_checked_once_it_is_joined(cluster: Cluster) -> None:
    cluster(2)
    gpu = with_changes(tiny(), {"scale": {"use_gpu": True, "wait_s": 0}})
    lacks = r"1 worker of 1 CPU and a GPU, and has room for 0; nodes: .*: 2 CPUs"
    with pytest.raises(UserError, match=lacks):
        pipeline.require_workers(gpu, ["prior", "vae"])
    large = with_changes(tiny(), {"scale": {"cpus_per_worker": 2}})
    assert pipeline.require_workers(large, ["vae"]).cpus == 2


def test_gpus_are_requested_by_the_first_stage_that_trains(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Unless no node can join: then what lacks is said before the work."""
    cluster(2)
    monkeypatch.delenv(OWN_RAY, raising=False)
    gpu = with_changes(tiny(), {"scale": {"use_gpu": True, "wait_s": 0, "num_workers": 4}})
    assert pipeline.require_workers(gpu, ["bank", "parse", "prior"]) == Workers(1, 1, 2)
    said = " ".join(capsys.readouterr().out.split())
    assert "training will wait for nodes: the cluster needs room for 4 workers of 1 CPU and a GPU" in said
    assert pipeline.require_workers(gpu, ["bank", "parse"]) == Workers(1, 1, 2)
    assert capsys.readouterr().out == ""
    monkeypatch.setenv(OWN_RAY, "1")
    with pytest.raises(UserError, match="4 workers of 1 CPU and a GPU"):
        pipeline.require_workers(gpu, ["bank", "parse", "prior"])


def test_a_gpu_of_any_node_is_used_unless_it_is_forbidden(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster(4, (4, 1))
    assert has_gpu(ScaleConfig())
    assert not has_gpu(ScaleConfig(use_gpu=False))
    cluster(4, (0, 1))  # no process could use it
    assert not has_gpu(ScaleConfig())
    cluster(4)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert has_gpu(ScaleConfig(use_gpu=True), may_join=True)
    assert not has_gpu(ScaleConfig(use_gpu=True))
    assert not has_gpu(ScaleConfig(), may_join=True)
    monkeypatch.delenv("RAY_ADDRESS")
    monkeypatch.setenv(OWN_RAY, "1")
    assert not has_gpu(ScaleConfig(use_gpu=True), may_join=True)


def test_without_a_gpu_the_driver_does_it_itself(cluster: Cluster) -> None:
    cluster(4)
    done = on_gpu(ScaleConfig(), "sample", lambda device, *rest: (device, rest), 1, 2)
    assert done == ((torch.device("cpu"), (1, 2)), 0.0)
    # Beside a GPU a process has the threads of its share.
    threads = [actors._threads([Node(64), Node(32, 4), Node(8, 1)], share) for share in (1, 0.25, 0.01)]
    assert threads == [8, 2, 1]
