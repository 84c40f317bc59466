"""The models of the package open by name, are listed, and have the numbers of their cards."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open

import npdraw_dist
from npdraw_dist import models
from npdraw_dist.data.readers.emoji import PLACES
from npdraw_dist.evaluate import __main__ as evaluate
from npdraw_dist.nn.npdraw import NPDraw
from npdraw_dist.pipeline.trained_models import chosen_model
from npdraw_dist.system.errors import UserError
from npdraw_dist.system.model_files import WEIGHTS, ZOO, zoo_names

NAMES = zoo_names()
MOST_MB = 25
# Where the data of a model lie, if their Debian package is there; others have no test of their numbers.
FILES = {"emoji": PLACES[0], "emoji64": PLACES[0], "fashion": "/usr/share/datasets/fashion-mnist"}


def test_each_model_is_described_and_all_are_small() -> None:
    assert set(yaml.safe_load((ZOO / models.FACTS).read_text())) == set(NAMES)
    assert sum(path.stat().st_size for path in ZOO.rglob("*")) < MOST_MB * 1e6


@pytest.mark.parametrize("name", NAMES)
def test_a_model_opens_by_its_name_without_a_network(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = npdraw_dist.load(name)
    assert isinstance(model, NPDraw)
    known = model.vocabulary.known
    drawn = model.draw(2, seed=0, condition=known[0] if known else None)
    assert drawn.images.shape == (2, *model.spec.image_shape)
    assert drawn.z.whether.any()
    with safe_open(ZOO / name / WEIGHTS, "pt") as weights:
        assert weights.get_tensor("bank_parts").dtype == torch.float16
    assert next(model.parameters()).dtype == torch.float32
    for file in ("README.md", "samples.png"):
        assert (ZOO / name / file).stat().st_size > 500


def test_a_folder_of_the_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = npdraw_dist.load("digits")
    model.spec = model.spec.model_copy(update={"temperature": 0.31})
    model.save_pretrained("digits")
    assert npdraw_dist.load("digits").spec.temperature == 0.31
    with pytest.raises(UserError, match="emoji, emoji64, fashion, glyphs"):
        npdraw_dist.load("emojis")


def test_without_a_run_the_commands_take_emoji(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert Path(chosen_model(None)) == ZOO / "emoji"
    assert "taking emoji" in capsys.readouterr().out


def test_the_list_has_each_model_with_its_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    models.main([])
    printed = capsys.readouterr().out
    for name in NAMES:
        results = json.loads((ZOO / name / "config.json").read_text())["results"]
        assert f"{name}: " in printed
        assert f"NLL {results['nll_iwae']:.2f} nats" in printed


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("name", [name for name in NAMES if name in FILES])
def test_the_numbers_of_a_card_are_made_again(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not Path(FILES[name]).exists():
        pytest.skip(f"{FILES[name]} is not installed")
    monkeypatch.chdir(tmp_path)
    results = json.loads((ZOO / name / "config.json").read_text())["results"]
    out = tmp_path / "numbers.json"
    counts = ["--k", str(results["k"]), "--images", str(results["n"]), "--split", results["split"]]
    model = tmp_path / "copy"
    npdraw_dist.load(name).save_pretrained(model)
    flags = [*counts, "--data.path", FILES[name], "--scale.num_workers", "0", "--out", str(out)]
    evaluate.main(["--model", str(model), *flags])
    found = json.loads(out.read_text())
    assert found["nll_iwae"] == pytest.approx(results["nll_iwae"], rel=1e-3)
    assert found["elbo"] == pytest.approx(results["elbo"], rel=1e-3)
