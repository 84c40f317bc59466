"""A prepared set needs no sizes on any command line; its manifest states them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from npdraw_dist import prepare, train
from npdraw_dist.config.cli import parse_flags, validate
from npdraw_dist.config.load import build, resolve, with_changes
from npdraw_dist.config.prepared import MAKER
from npdraw_dist.config.schema import DataConfig
from npdraw_dist.evaluate.__main__ import Evaluate
from npdraw_dist.evaluate.settings import EvaluationSettings
from npdraw_dist.system.errors import UserError
from tests.helpers.runs import Refused
from tests.helpers.spaces import load_space
from tune_spaces import driver, sweep

SIZE = 20
FLAGS = ["--data.source", "parquet", "--data.path"]


@pytest.fixture
def out(tmp_path: Path) -> str:
    """A folder with a manifest as `prepare` writes it, and no shard."""
    splits = {"train": 1, "valid": 0, "test": 0}
    manifest = {
        "maker": MAKER,
        "shards": "parquet",
        "shape": [3, SIZE, SIZE],
        "splits": splits,
        "digests": {},
        "classes": [],
        "has_words": False,
        "files": [],
    }
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "manifest.json").write_text(json.dumps(manifest))
    return str(tmp_path / "out")


def of_train(path: str, *more: str) -> DataConfig:
    return resolve("cifar10", None, parse_flags(train.Train, "train", [*FLAGS, path, *more])).data


def of_prepare(path: str, *more: str) -> DataConfig:
    flags = parse_flags(prepare.Prepare, "prepare", [*FLAGS, path, "--out", "o", *more])
    data: DataConfig = validate(prepare.Prepare, flags).data
    return data


def of_evaluate(path: str, *more: str) -> DataConfig:
    flags = parse_flags(Evaluate, "evaluate", [*FLAGS, path, "--model", "m", *more])
    data: DataConfig = validate(EvaluationSettings, flags).data
    return data


def of_sweep(path: str, *more: str) -> DataConfig:
    options, flags = sweep.parse(["--space", "smoke", "--preset", "cifar10", *FLAGS, path, *more])
    return driver.base_config(options, load_space("smoke"), flags).data


COMMANDS = [of_train, of_prepare, of_evaluate, of_sweep]
Command = Callable[..., DataConfig]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("source", ["parquet", "webdataset"])
def test_the_manifest_gives_the_sizes(out: str, command: Command, source: str) -> None:
    data = command(out, "--data.source", source)
    assert (data.source, data.path, data.image_size, data.channels) == (source, out, SIZE, 3)
    assert command(Path(out).as_uri()).shape == (3, SIZE, SIZE)


def test_images_may_be_wider_than_high(out: str) -> None:
    manifest = Path(out) / "manifest.json"
    manifest.write_text(manifest.read_text().replace(f"[3, {SIZE}, {SIZE}]", "[3, 16, 20]"))
    data = of_train(out)
    assert (data.image_size, data.shape) == ("16x20", (3, 16, 20))
    assert of_train(out, "--data.image_size", "16x16").image_size == 16
    with pytest.raises(UserError, match="'16x' is no size of images"):
        of_train(out, "--data.image_size", "16x")


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("manifest", "said"),
    [
        (None, r"needs data\.image_size and data\.channels"),
        ('{"maker": "another", "shape": [1, 2, 2]}', r"needs data\.image_size and data\.channels"),
        (f'{{"maker": "{MAKER}"}}', r"manifest\.json is damaged"),
    ],
)
def test_without_a_manifest_the_sizes_are_asked_for(
    tmp_path: Path, command: Command, manifest: str | None, said: str
) -> None:
    if manifest is not None:
        (tmp_path / "manifest.json").write_text(manifest)
    with pytest.raises(UserError, match=said):
        command(str(tmp_path))


def test_the_config_holds_the_sizes(out: str, capsys: pytest.CaptureFixture[str]) -> None:
    train.main(["--preset", "cifar10", *FLAGS, out, "--dry-run"])
    config = yaml.safe_load(capsys.readouterr().out)
    assert (config["data"]["image_size"], config["data"]["channels"]) == (SIZE, 3)
    (Path(out) / "manifest.json").unlink()
    made = build(config)  # as a resumed run reads it
    assert with_changes(made, {"bank": {"size": 7}}).data == made.data


def test_a_wrong_size_is_one_line_that_mends_it(out: str, tmp_path: Path, refused: Refused) -> None:
    (Path(out) / "0.parquet").touch()
    runs = ["--storage", str(tmp_path / "runs")]
    mend = f"--data.image_size {SIZE} --data.channels 3"
    wrong = [*FLAGS, out, "--data.image_size", "32"]
    for preset in (["--preset", "emoji64", *FLAGS, out], ["--preset", "cifar10", *wrong]):
        assert mend in refused(train.main, *preset, *runs)
        assert not (tmp_path / "runs").exists()
    assert mend in refused(prepare.main, *wrong, "--out", str(tmp_path / "again"))
