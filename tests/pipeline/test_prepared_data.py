"""Every command reads a prepared set without sizes."""

import json
from pathlib import Path

import pytest
import yaml

from npdraw_dist import extractor, prepare, train
from npdraw_dist.evaluate import __main__ as evaluate
from tests.helpers.runs import TINY
from tune_spaces import sweep

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def out(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digits as Parquet."""
    out = str(tmp_path_factory.mktemp("prepared") / "parquet")
    prepare.main(["--data.source", "digits", "--data.fraction", "0.3", "--out", out])
    return out


@pytest.fixture
def flags(out: str) -> list[str]:
    return ["--data.source", "parquet", "--data.path", out]


def test_prepare(flags: list[str], tmp_path: Path) -> None:
    prepare.main([*flags, "--out", str(tmp_path / "tars"), "--format", "webdataset"])
    again = json.loads((tmp_path / "tars" / "manifest.json").read_text())
    assert again["shape"] == [1, 28, 28]
    # The tars are a prepared set too.
    tars = ["--data.source", "webdataset", "--data.path", str(tmp_path / "tars")]
    prepare.main([*tars, "--out", str(tmp_path / "parquet")])
    made = json.loads((tmp_path / "parquet" / "manifest.json").read_text())
    assert (made["shape"], made["splits"]) == (again["shape"], again["splits"])


def test_train_and_resume(flags: list[str], tmp_path: Path) -> None:
    words = [*TINY, "--data.fraction", "1", *flags, "--storage", str(tmp_path), "--name", "run"]
    train.main([*words, "--stages", "bank,parse"])
    run = tmp_path / "run"
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert (config["data"]["image_size"], config["data"]["channels"]) == (28, 1)
    parses = json.loads((run / "parses" / "manifest.json").read_text())
    assert parses["images"] == sum(parses["splits"].values()) > 400
    train.main([*words, "--stages", "bank,parse"])


def test_evaluate(flags: list[str], tiny_run: Path, tmp_path: Path) -> None:
    file = tmp_path / "numbers.json"
    evaluate.main(
        ["--model", str(tiny_run / "model"), *flags, "--k", "2", "--images", "16", "--out", str(file)]
    )
    assert json.loads(file.read_text())["n"] == 16


def test_extractor(flags: list[str], tmp_path: Path) -> None:
    extractor.main([*flags, "--images", "128", "--features", "4", "--out", str(tmp_path / "c.pt")])
    assert (tmp_path / "c.pt").is_file()


def test_sweep(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    sweep.main(["--space", "smoke", *flags, "--dry-run"])
    assert len(capsys.readouterr().out.splitlines()) == 2
