"""`npdraw evaluate` and `npdraw train-extractor` on a tiny run: numbers, protocol, comparison."""

import hashlib
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from npdraw_dist import train, train_extractor
from npdraw_dist.config.schema import DataConfig
from npdraw_dist.config.spec import SplitSpec
from npdraw_dist.data.shards import open_source
from npdraw_dist.data.splits import unit_hash
from npdraw_dist.distributed import start
from npdraw_dist.evaluate import __main__ as evaluate
from npdraw_dist.evaluate.edits import measure_edits
from npdraw_dist.evaluate.protocol import with_defaults
from npdraw_dist.evaluate.work import GENERATED
from npdraw_dist.measure.distances import all_distances
from npdraw_dist.measure.features import facts_of
from npdraw_dist.pipeline.inputs import require_split
from npdraw_dist.pipeline.scores import BATCH, score_images
from npdraw_dist.pipeline.trained_models import load_npdraw
from npdraw_dist.system.errors import UserError
from npdraw_dist.training.feed import noise_seed
from tests.helpers.runs import IN_PROCESS, TINY, Refused
from tests.helpers.tiny_models import tiny_spec

K, IMAGES, SAMPLES, EDITS = 6, 80, 50, 20


@pytest.fixture(scope="module")
def no_ray() -> Iterator[None]:
    """Ray cannot be imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "ray", None)
        patch.setattr(start, "start_ray", lambda scale: None)
        yield


@pytest.fixture(scope="module")
def classifier(no_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier trained for a moment."""
    out = tmp_path_factory.mktemp("extractor") / "classifier.pt"
    budget = ["--images", "6400", "--features", "8"]
    train_extractor.main(
        ["--data.source", "digits", "--data.binarize", "threshold", "--out", str(out), *budget]
    )
    return out


@pytest.fixture(scope="module")
def evaluated(
    no_ray: None, run_in_process: Path, classifier: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A copy of the run, with the evaluation.json of some images."""
    run = Path(shutil.copytree(run_in_process, tmp_path_factory.mktemp("evaluated") / "first"))
    evaluate.main(["--model", str(run), *flags_of(classifier), *IN_PROCESS])
    return run


def flags_of(classifier: Path, edits: int = EDITS) -> list[str]:
    sizes = {"k": K, "images": IMAGES, "samples": SAMPLES, "extractor": classifier, "edits": edits}
    return [word for name, value in sizes.items() for word in (f"--{name}", str(value))]


def scored(model: Path, out: Path, *flags: str) -> dict[str, Any]:
    evaluate.main(["--model", str(model), "--out", str(out), *IN_PROCESS, *flags])
    return dict(json.loads(out.read_text()))


def chosen() -> torch.Tensor:
    """The IMAGES test images whose ids have the smallest hashes, in the order of the shard."""
    (shard,) = open_source(DataConfig(binarize="threshold"), 0).shards("test")
    rows = shard.read()
    hashes = [unit_hash(0, "evaluate", name) for name in rows.ids]
    limit = sorted(hashes)[IMAGES - 1]
    return torch.from_numpy(rows.images[[value <= limit for value in hashes]])


def test_the_numbers_are_those_of_every_image_in_order(evaluated: Path, classifier: Path) -> None:
    """Against the same scores and features taken one batch after another."""
    found, images = json.loads((evaluated / "evaluation.json").read_text()), chosen()
    model = load_npdraw(str(evaluated / "model"))
    scores = [score_images(model, batch, K, 0, 0, number) for number, batch in enumerate(images.split(BATCH))]
    assert (found["n"], found["k"], found["split"], found["made_by"]["actors"]) == (IMAGES, K, "test", 1)
    for name in scores[0]:
        expected = float(torch.cat([part[name] for part in scores]).mean())
        assert found[name] == pytest.approx(expected, rel=1e-6), name
    assert 0 < found["nll_iwae"] <= -found["elbo"]
    assert 1 <= found["effective_samples"] <= K
    edits = measure_edits(model, images, EDITS, 0, torch.jit.load(str(classifier)).eval())
    assert {name: found[name] for name in edits} == pytest.approx(edits, rel=1e-5)
    assert 0 < found["bank_used"] <= 1 <= found["bank_perplexity"] <= 20

    extract = torch.jit.load(str(classifier)).eval()
    generator = torch.Generator().manual_seed(noise_seed(0, GENERATED, 0))
    with torch.no_grad():
        drawn = extract(model.sample(SAMPLES, generator=generator, temperature=1.0, pixels=True))
        real = torch.cat([extract((batch > 127).float()) for batch in images.split(BATCH)])
    for name, value in all_distances(real, drawn, 0).items():
        assert found[name] == pytest.approx(value, rel=1e-4), name
    assert found["frechet_distance"] > 0
    assert "fid" not in found  # which is of Inception alone

    protocol, how = found["protocol"], found["protocol"]["distance"]
    assert (protocol["kind"], protocol["binarize"], protocol["seed"]) == ("npdraw", "threshold", 0)
    assert (protocol["data"]["fraction"], protocol["images"]) == (0.05, IMAGES)
    assert (how["n_real"], how["n_generated"], how["features"]) == (IMAGES, SAMPLES, 8)
    assert how["extractor_sha256"] == hashlib.sha256(classifier.read_bytes()).hexdigest()
    assert (evaluated / "evaluation.png").exists()
    stated = json.loads((evaluated / "model" / "config.json").read_text())["results"]
    assert (stated["nll_iwae"], stated["recall"]) == (found["nll_iwae"], found["recall"])


def ids(run: Path, *splits: str) -> set[str]:
    files = [file for split in splits for file in (run / "data" / split).glob("*.parquet")]
    return {name for file in files for name in pq.read_table(file, columns=["id"])["id"].to_pylist()}


def test_no_seed_of_an_evaluation_draws_other_splits(
    run_in_process: Path, no_ray: None, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(run_in_process, tmp_path / "run"))
    alone = Path(shutil.copytree(run / "model", tmp_path / "model"))  # in no run folder
    test = ids(run, "test")
    assert len(test) > 100
    assert not test & ids(run, "train", "valid")
    digest = hashlib.sha256("\n".join(sorted(test)).encode()).hexdigest()
    found = [
        scored(model, tmp_path / "out.json", "--k", "1", "--seed", str(seed))
        for model, seed in ((run, 0), (run, 1), (alone, 2))
    ]
    for seed, result in enumerate(found):
        protocol = result["protocol"]
        assert (protocol["seed"], protocol["split_seed"], protocol["ids_sha256"]) == (seed, 0, digest)
    assert len({result["elbo"] for result in found}) == 3  # the noise differs
    known = [(result["protocol"]["data_of_training"], result["protocol"]["inputs"]) for result in found]
    digest = json.loads((run / "data" / "manifest.json").read_text())["digests"]["train"]
    assert known == [("same", digest), ("same", digest), ("unknown", None)]


def test_the_data_of_a_run_need_not_be_given_again(run_in_process: Path) -> None:
    model = str(run_in_process / "model")
    found = with_defaults({"model": model, "data": {"valid_fraction": 0.2}})
    assert (found["data"]["source"], found["data"]["fraction"], found["seed"]) == ("digits", 0.05, 0)
    assert found["data"]["valid_fraction"] == 0.2
    assert with_defaults({"model": model, "seed": 4})["seed"] == 4
    other = {"source": "mnist", "path": "elsewhere"}
    assert with_defaults({"model": model, "data": other})["data"] == other
    with pytest.raises(UserError, match="--split-seed"):  # a model that names no splits
        require_split("model", tiny_spec(), DataConfig(), None)
    assert require_split("model", tiny_spec(), DataConfig(), 5) == 5
    splits = SplitSpec(source="emoji", fraction=1.0, valid_fraction=0.1, test_fraction=0.1, seed=3)
    spec = tiny_spec().model_copy(update={"data": splits})
    own = splits.data((3, 32, 32))
    assert require_split("model", spec, own, None) == 3
    with pytest.raises(UserError, match=r"--data\.split_by is variant, .* trained with face"):
        require_split("model", spec, own.model_copy(update={"split_by": "variant"}), None)


def test_runs_are_compared_if_they_were_measured_the_same_way(
    evaluated: Path, tmp_path: Path, refused: Refused
) -> None:
    runs = [Path(shutil.copytree(evaluated, tmp_path / name)) for name in "ab"]
    result = json.loads((evaluated / "evaluation.json").read_text())

    def change(**values: Any) -> None:
        (runs[1] / "evaluation.json").write_text(json.dumps(result | values))

    command = ["--compare", *map(str, runs), "--out", str(tmp_path / "out")]
    change(nll_iwae=1.5)
    evaluate.main(command)
    evaluate.main(["--compare", str(runs[0]), "--out", str(tmp_path / "alone")])
    table = pq.read_table(tmp_path / "out" / "comparison.parquet").to_pylist()
    assert [row["nll_iwae"] for row in table] == [result["nll_iwae"], 1.5]
    for row in table:
        assert row["frechet_distance"] == result["frechet_distance"]
        assert (row["kind"], row["fraction"], row["seed"], row["images_seen"]) == ("NP-DRAW", 0.05, 0, 1024)
    text = (tmp_path / "out" / "comparison.md").read_text()
    assert all(f"| {run} | NP-DRAW | 5% | 0 |" in text for run in runs)  # told apart by their folders
    page, alone = (Image.open(tmp_path / name / "samples.png").height for name in ("out", "alone"))
    assert page > 1.5 * alone  # a row for each run
    for name, value, says in (
        ("nll", "IWAE of 99 sampled log-ratios an image", "same way (nll: "),
        ("ids_sha256", "b" * 64, "same way (ids_sha256: "),
        ("ids_sha256", None, "evaluation.json is unreadable"),
    ):
        change(protocol=result["protocol"] | {name: value})
        assert says in refused(evaluate.main, *command)


@pytest.mark.slow
def test_kinds_are_compared(evaluated: Path, classifier: Path, tmp_path: Path, refused: Refused) -> None:
    kind = ["--model.kind", "draw", "--baseline.steps", "2", "--baseline.hidden", "16"]
    train.main(
        ["--storage", str(tmp_path), "--name", "draw", *TINY, *IN_PROCESS, *kind, "--data.fraction", "0.05"]
    )
    run = tmp_path / "draw"
    line = refused(evaluate.main, "--model", str(run), *IN_PROCESS, *flags_of(classifier))
    assert "kind draw cannot edit a region" in line
    assert not (run / "evaluation.json").exists()
    scored(run, run / "evaluation.json", *flags_of(classifier, edits=0))
    assert not (run / "evaluation.png").exists()  # canvases of parts
    evaluate.main(["--compare", str(evaluated), str(run), "--out", str(tmp_path / "out")])
    table = pq.read_table(tmp_path / "out" / "comparison.parquet").to_pylist()
    assert [(row["kind"], row["images_seen"]) for row in table] == [("NP-DRAW", 1024), ("DRAW", 512)]


def test_a_classifier_finds_its_classes_and_needs_labels(
    classifier: Path, tmp_path: Path, refused: Refused
) -> None:
    facts = facts_of(classifier.read_bytes())
    assert facts["valid_accuracy"] > 0.6
    assert (facts["name"], facts["classes"], facts["features"]) == ("classifier-digits", 10, 8)
    for number in range(30):
        Image.new("L", (28, 28), number).save(tmp_path / f"{number}.png")
    data = ["--data.source", "imagefolder", "--data.path", str(tmp_path), "--data.image_size", "28"]
    own = ["--data.channels", "1", "--scale.num_workers", "0", "--out", str(tmp_path / "c.pt")]
    line = refused(train_extractor.main, *data, *own)
    assert "data.source imagefolder has no labels" in line
