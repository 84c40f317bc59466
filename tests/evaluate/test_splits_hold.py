"""No image of a model's training is scored as held out, whatever the seed of the evaluation."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from npdraw_dist import train
from npdraw_dist.config.schema import DataConfig, Experiment
from npdraw_dist.config.spec import spec_of
from npdraw_dist.core.errors import UserError
from npdraw_dist.data.shards import open_source
from npdraw_dist.evaluate import __main__ as evaluate
from npdraw_dist.evaluate.runs_table import read_run, require_same_protocol
from npdraw_dist.evaluate.settings import EvaluationSettings
from npdraw_dist.pipeline.inputs import require_split
from tests.helpers.runs import HERE, TINY, Refused
from tests.helpers.tiny_models import tiny_spec

SEED = 3


def ids(run: Path, split: str) -> set[str]:
    files = (run / "parses" / split).glob("*.parquet")
    return {name for file in files for name in pq.read_table(file, columns=["id"])["id"].to_pylist()}


def sha256(names: set[str]) -> str:
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()


def scored(model: Path, out: Path, *flags: str) -> dict[str, Any]:
    evaluate.main(["--model", str(model), "--k", "1", "--out", str(out), *flags])
    return dict(json.loads(out.read_text()))


@pytest.fixture(scope="module")
def run(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    storage = tmp_path_factory.mktemp("runs")
    kind = ["--model.kind", "vae", "--baseline.width", "16", "--baseline.depth", "0"]
    train.main(["--storage", str(storage), "--name", "vae", *TINY, *HERE, *kind, "--seed", str(SEED)])
    return storage / "vae"


@pytest.mark.parametrize("seed", range(5))
def test_no_seed_of_an_evaluation_draws_other_splits(seed: int) -> None:
    """What the next test shows with whole evaluations: the splits are those of the training."""
    experiment = Experiment.model_validate({"seed": SEED, "model": {"kind": "vae"}})
    spec = spec_of(experiment)
    settings = EvaluationSettings(model="elsewhere", seed=seed)
    drawn = require_split(settings.model, spec, settings.data, settings.split_seed)
    source = open_source(settings.data, drawn)
    trained = open_source(experiment.data, SEED).shards("train")
    seen = {name for shard in trained for name in shard.read().ids}
    scored = {name for shard in source.shards("test") for name in shard.read().ids}
    assert len(scored) > 100
    assert not scored & seen


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_five_seeds_score_the_test_images_of_the_run(run: Path, tmp_path: Path) -> None:
    test, seen = ids(run, "test"), ids(run, "train") | ids(run, "valid")
    assert not test & seen
    model = Path(shutil.copytree(run / "model", tmp_path / "model"))  # in no run folder
    found = []
    for seed in range(5):
        folder = run / "model" if seed % 2 else model
        result = scored(folder, tmp_path / "out.json", "--seed", str(seed))
        assert result["protocol"]["ids_sha256"] == sha256(test)
        assert (result["protocol"]["seed"], result["protocol"]["split_seed"]) == (seed, SEED)
        found.append(result["elbo"])
    assert len(set(found)) == 5  # the noise differs
    some = [scored(model, tmp_path / "out.json", "--seed", s, "--images", "20") for s in ("0", "1")]
    assert some[0]["n"] == some[1]["n"] == 20
    assert some[0]["protocol"]["ids_sha256"] == some[1]["protocol"]["ids_sha256"] != sha256(test)


@pytest.mark.ray
@pytest.mark.slow
def test_an_evaluation_cannot_draw_other_splits(run: Path, tmp_path: Path, refused: Refused) -> None:
    command = ["--model", str(run / "model"), "--out", str(tmp_path / "x.json")]
    line = refused(evaluate.main, *command, "--data.valid_fraction", "0.2")
    assert "--data.valid_fraction is 0.2" in line
    assert "was trained with 0.1" in line
    line = refused(evaluate.main, *command, "--split-seed", "4")
    assert "--split-seed is 4" in line
    assert "have the seed 3" in line
    assert not (tmp_path / "x.json").exists()


def test_a_model_that_names_no_splits_needs_their_seed() -> None:
    spec, data = tiny_spec(), DataConfig()
    with pytest.raises(UserError, match="--split-seed"):
        require_split("model", spec, data, None)
    assert require_split("model", spec, data, 5) == 5


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"ids_sha256": "b" * 64}, "were not measured the same way (ids_sha256: "),
        ({"ids_sha256": None}, "evaluation.json is unreadable (KeyError('ids_sha256'))"),
    ],
)
def test_runs_scored_on_other_images_are_not_compared(
    change: dict[str, str | None], says: str, tmp_path: Path
) -> None:
    config = "seed: 0\nmodel: {kind: vae}\ndata: {fraction: 1.0}\n"
    protocol = {"data": {"source": "digits"}, "parameters": 5, "ids_sha256": "a" * 64}
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(config)
        merged = {key: v for key, v in {**protocol, **(change if name == "b" else {})}.items() if v}
        result = {"nll_iwae": 70.0, "n": 9, "split": "test", "protocol": merged}
        (tmp_path / name / "evaluation.json").write_text(json.dumps(result))
    with pytest.raises(UserError) as error:
        require_same_protocol([read_run(str(tmp_path / name)) for name in ("a", "b")])
    assert says in str(error.value)
