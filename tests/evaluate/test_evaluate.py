"""`npdraw evaluate` and `npdraw extractor` on tiny runs: numbers, protocol, actors, comparison."""

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from npdraw_dist import extractor, sample, train
from npdraw_dist.config.schema import DataConfig
from npdraw_dist.core.errors import UserError
from npdraw_dist.data.shards import open_source
from npdraw_dist.data.splits import unit_hash
from npdraw_dist.evaluate import __main__ as evaluate
from npdraw_dist.evaluate.protocol import with_defaults
from npdraw_dist.pipeline.models import load_model, load_npdraw
from npdraw_dist.pipeline.scores import BATCH, score_images
from tests.helpers.runs import HERE, TINY, Refused

pytestmark = pytest.mark.ray  # the slow ones in small form: the commands of the README, run by test_readme

K, IMAGES = 12, 100


@pytest.fixture(scope="session")
def vae_run(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of one finished `train` of the baseline VAE."""
    storage = tmp_path_factory.mktemp("runs")
    kind = ["--model.kind", "vae", "--baseline.width", "16", "--baseline.depth", "0"]
    train.main(["--storage", str(storage), "--name", "vae", *TINY, *HERE, *kind])
    return storage / "vae"


@pytest.fixture(scope="session")
def classifier(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier trained for a moment."""
    out = tmp_path_factory.mktemp("extractor") / "classifier.pt"
    budget = ["--images", "6400", "--features", "8"]
    extractor.main(["--data.source", "digits", "--data.binarize", "threshold", "--out", str(out), *budget])
    return out


@pytest.fixture(scope="session")
def evaluated(
    tiny_run: Path, vae_run: Path, classifier: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[Path]:
    """Copies of NP-DRAW's run and the VAE's, each with the evaluation.json of two actors."""
    folder = tmp_path_factory.mktemp("evaluated")
    runs = [Path(shutil.copytree(run, folder / run.name)) for run in (tiny_run, vae_run)]
    for run in runs:
        evaluate.main(["--model", str(run / "model"), *flags_of(classifier), "--scale.num_workers", "2"])
    return runs


def flags_of(classifier: Path) -> list[str]:
    return ["--k", str(K), "--extractor", str(classifier), "--images", str(IMAGES), "--samples", "70"]


def numbers(file: Path) -> dict[str, Any]:
    return {key: value for key, value in json.loads(file.read_text()).items() if key != "made_by"}


def chosen() -> torch.Tensor:
    """The IMAGES test images whose ids have the smallest hashes, in the order of the shard."""
    (shard,) = open_source(DataConfig(binarize="threshold", fraction=0.3), 0).shards("test")
    rows = shard.read()
    hashes = [unit_hash(0, "evaluate", name) for name in rows.ids]
    limit = sorted(hashes)[IMAGES - 1]
    return torch.from_numpy(rows.images[[value <= limit for value in hashes]])


@pytest.mark.slow
def test_the_numbers_are_those_of_every_image_in_order(evaluated: list[Path]) -> None:
    """Against the same scores taken one batch after another in this process."""
    assert [(run / "evaluation.png").exists() for run in evaluated] == [True, False]  # canvases of parts
    found = numbers(evaluated[0] / "evaluation.json")
    images = chosen()
    model = load_model(str(evaluated[0] / "model"))
    scores = [
        score_images(model, images[start : start + BATCH], K, 0, 0, number)
        for number, start in enumerate(range(0, IMAGES, BATCH))
    ]
    assert (found["n"], found["k"], found["split"]) == (IMAGES, K, "test")
    for name in scores[0]:
        expected = float(torch.cat([part[name] for part in scores]).mean())
        assert found[name] == pytest.approx(expected, rel=1e-6), name
    assert 0 < found["nll_iwae"] <= -found["elbo"]
    assert found["authors_estimator"] != found["nll_iwae"]
    assert 1 <= found["effective_samples"] <= K
    assert 0 < found["active_parts"] < 36
    assert 0 < found["bank_used"] <= 1 <= found["bank_perplexity"] <= 20
    assert found["nll_iwae_se"] > 0
    protocol = found["protocol"]
    assert (protocol["kind"], protocol["binarize"], protocol["seed"]) == ("npdraw", "threshold", 0)
    assert protocol["data"]["fraction"] == 0.3
    assert protocol["images"] == IMAGES
    assert found["distance"] == "Frechet distance of classifier-digits"
    assert "fid" not in found
    how = protocol["distance"]
    assert (how["n_real"], how["n_generated"]) == (IMAGES, 70)
    assert (how["features"], how["pixels"], how["resize"]) == (8, "drawn", "none")
    assert len(how["extractor_sha256"]) == 64
    assert found["frechet_distance"] > 0


def test_iwae_of_a_trained_model_grows_with_k(tiny_run: Path) -> None:
    (shard,) = open_source(DataConfig(binarize="threshold", fraction=0.3), 0).shards("test")
    images = torch.from_numpy(shard.read().images)[:32]
    model = load_model(str(tiny_run / "model"))
    nll = [float(score_images(model, images, k, 0, 0, 0)["nll_iwae"].mean()) for k in (1, 8, 64)]
    assert nll == sorted(nll, reverse=True)


@pytest.mark.slow
def test_one_actor_and_this_process_give_the_numbers_of_two(
    evaluated: list[Path], classifier: Path, tmp_path: Path
) -> None:
    two = evaluated[0] / "evaluation.json"
    assert json.loads(two.read_text())["made_by"]["actors"] == 2
    for workers in ("1", "0"):
        out = tmp_path / f"{workers}.json"
        flags = [*flags_of(classifier), "--scale.num_workers", workers, "--out", str(out)]
        evaluate.main(["--model", str(evaluated[0] / "model"), *flags])
        assert json.loads(out.read_text())["made_by"]["actors"] == 1
        assert numbers(out) == numbers(two)


def test_the_data_of_a_run_need_not_be_told_again(tiny_run: Path) -> None:
    model = str(tiny_run / "model")
    found = with_defaults({"model": model, "data": {"valid_fraction": 0.2}})
    assert (found["data"]["source"], found["data"]["fraction"], found["seed"]) == ("digits", 0.3, 0)
    assert found["data"]["valid_fraction"] == 0.2
    assert with_defaults({"model": model, "seed": 4})["seed"] == 4
    other = {"source": "mnist", "path": "elsewhere"}
    assert with_defaults({"model": model, "data": other})["data"] == other


@pytest.mark.slow
def test_a_baseline_goes_through_the_pipeline(vae_run: Path, tmp_path: Path, refused: Refused) -> None:
    files = {path.name for path in vae_run.iterdir()}
    needed = {"parses", "vae", "model", "metrics.json", "samples.png", "generation.gif", "curves.png"}
    needed.add("neighbours.png")
    assert needed <= files
    assert not {"bank", "prior"} & files
    assert set(pq.read_schema(next((vae_run / "parses" / "test").glob("*.parquet"))).names) == {
        "id",
        "image",
        "label",
    }
    assert json.loads((vae_run / "model" / "config.json").read_text())["spec"]["kind"] == "vae"
    metrics = json.loads((vae_run / "metrics.json").read_text())
    assert 0 < metrics["test/nll_iwae"] <= -metrics["test/elbo"]
    sample.main(["--model", str(vae_run / "model"), "--n", "5", "--out", str(tmp_path / "samples")])
    assert Image.open(tmp_path / "samples" / "samples.png").size[0] > 100
    with pytest.raises(UserError, match="is of kind vae, which draws no parts"):
        load_npdraw(str(vae_run / "model"))
    flags = ["--storage", str(vae_run.parent), "--name", "vae", *TINY, "--model.kind", "vae"]
    line = refused(train.main, *flags, "--stages", "bank")
    assert "unknown stage 'bank'" in line
    assert "parse, vae, sample" in line


@pytest.mark.slow
def test_a_comparison(evaluated: list[Path], tmp_path: Path, refused: Refused) -> None:
    runs = [Path(shutil.copytree(run, tmp_path / run.name)) for run in evaluated]
    evaluate.main(["--compare", *map(str, runs), "--out", str(tmp_path / "out")])
    table = pq.read_table(tmp_path / "out" / "comparison.parquet").to_pylist()
    assert {row["kind"] for row in table} == {"NP-DRAW", "VAE"}
    for row, run in zip(table, runs, strict=True):
        result = json.loads((run / "evaluation.json").read_text())
        assert row["nll_iwae"] == result["nll_iwae"]
        assert row["frechet_distance"] == result["frechet_distance"]
        assert (row["fraction"], row["seed"]) == (0.3, 0)
    assert [row["images_seen"] for row in table] == [1024, 512]
    text = (tmp_path / "out" / "comparison.md").read_text()
    assert "| NP-DRAW | 30% | 0 |" in text
    assert "extractor: classifier-digits" in text
    for name in ("comparison.png", "samples.png"):
        assert Image.open(tmp_path / "out" / name).size[0] > 300
    other = json.loads((runs[1] / "evaluation.json").read_text())
    other["protocol"]["nll"] = "IWAE of 99 sampled log-ratios an image"
    (runs[1] / "evaluation.json").write_text(json.dumps(other))
    line = refused(evaluate.main, "--compare", *map(str, runs), "--out", str(tmp_path / "out"))
    assert "were not measured the same way (nll: IWAE of 12" in line
    (runs[1] / "evaluation.json").unlink()
    line = refused(evaluate.main, "--compare", *map(str, runs), "--out", str(tmp_path / "out"))
    assert "has no evaluation.json; first: npdraw evaluate --model" in line


@pytest.mark.slow
def test_the_classifier_finds_its_classes(classifier: Path) -> None:
    extra = {"facts.json": ""}
    module = torch.jit.load(str(classifier), _extra_files=extra)
    facts = json.loads(extra["facts.json"])
    assert facts["valid_accuracy"] > 0.6
    assert (facts["name"], facts["classes"], facts["features"]) == ("classifier-digits", 10, 8)
    assert module(torch.rand(3, 1, 28, 28)).shape == (3, 8)


def test_data_without_labels_train_no_classifier(tmp_path: Path, local_ray: None, refused: Refused) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(30):
        Image.new("L", (28, 28), number).save(folder / f"{number}.png")
    data = ["--data.source", "imagefolder", "--data.path", str(folder), "--data.image_size", "28"]
    line = refused(extractor.main, *data, "--data.channels", "1", "--out", str(tmp_path / "c.pt"))
    assert "data.source imagefolder has no labels" in line
