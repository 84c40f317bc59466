"""Models in a folder, a run, at a URI or on a hub, for which a folder stands in; their config and card."""

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
from PIL import Image
from torch import nn

import npdraw_dist
from npdraw_dist import sample
from npdraw_dist.baselines.vae import ConvVAE
from npdraw_dist.config.spec import SplitSpec
from npdraw_dist.edit import __main__ as edit
from npdraw_dist.nn.hub import HubModel
from npdraw_dist.nn.npdraw import NPDraw
from npdraw_dist.system.errors import UserError
from npdraw_dist.system.made_by import stamp
from tests.helpers.tiny_baselines import tiny_baseline
from tests.helpers.tiny_models import tiny_model, tiny_spec

URL = "https://hub.example/me/tiny/commit/1"
DATA = SplitSpec(source="digits", seed=3, fraction=1.0, valid_fraction=0.1, test_fraction=0.2, inputs="abc")
RESULTS: dict[str, Any] = {
    **{"split": "test", "n": 1234, "k": 50, "nll_iwae": 88.25, "elbo": -92.5},
    "protocol": "Seed 0.",
}


def small() -> NPDraw:
    return tiny_model(tiny_spec(image_shape=(1, 4, 4), steps=4, data=DATA))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder with a model, and its model with numbers."""
    model, folder = small(), tmp_path / "runs" / "tiny"
    model.results = RESULTS
    model.save_pretrained(folder / "model")
    (folder / "config.yaml").write_text("seed: 0\n")
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", Mock(side_effect=AssertionError("the hub was called"))
    )


def same(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that replaces the hub, with a folder for each repository. Downloads go to `cache`."""
    folder, cache, response = tmp_path / "hub", tmp_path / "cache", Mock(headers={})

    def create(_: HfApi, repo_id: str, **__: Any) -> SimpleNamespace:
        return SimpleNamespace(repo_id=repo_id)

    def upload(_: HfApi, repo_id: str, folder_path: Path, **__: Any) -> str:
        shutil.copytree(folder_path, folder / repo_id)
        return URL

    def download(repo_id: str, revision: str | None, allow_patterns: list[str], **_: Any) -> str:
        if not (folder / repo_id).exists():
            raise RepositoryNotFoundError("404", response=response)
        if revision not in (None, "main"):
            raise RevisionNotFoundError("404", response=response)
        cache.mkdir(exist_ok=True)
        for name in allow_patterns:
            shutil.copy(folder / repo_id / name, cache)
        return str(cache)

    monkeypatch.setattr(HfApi, "create_repo", create)
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return folder


def test_a_model_goes_to_the_hub_and_back(hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # as if not installed
    monkeypatch.chdir(tmp_path)
    model = small()
    monkeypatch.setenv("HOME", str(tmp_path))
    model.save_pretrained("~/model")
    with pytest.raises(UserError, match="is a URI"):
        model.save_pretrained("s3://bucket/model")
    assert model.save_pretrained("named", push_to_hub=True) == URL  # as its folder, if no id is given
    assert (hub / "named" / "config.json").is_file()
    assert model.push_to_hub("me/tiny", commit_message="the first") == URL
    files = {path.name: path.read_bytes() for path in (hub / "me" / "tiny").iterdir()}
    assert set(files) == {"README.md", "config.json", "model.safetensors", "samples.png"}
    assert files["model.safetensors"] == Path("model/model.safetensors").read_bytes()
    assert 'npdraw_dist.load("me/tiny")' in files["README.md"].decode()
    assert files["samples.png"].startswith(b"\x89PNG")
    for again in (npdraw_dist.load("me/tiny"), NPDraw.from_pretrained("me/tiny@main")):
        assert same(again, model)
    for where, says in (("me/none", "no such model"), ("me/tiny@none", "no revision none of this model")):
        with pytest.raises(UserError, match=f"^{where} .*{says}"):
            npdraw_dist.load(where)
    sample.main(["--model", "me/tiny", "--n", "2", "--out", "drawn"])
    drawings = ["--a", "sample:1", "--b", "sample:2", "--region", "0:1,:", "--keep", "0:1,:"]
    edit.main(["--model", "me/tiny", *drawings, "--out", "made"])
    assert Path("drawn/samples.png").is_file()
    assert Path("made/completion.png").is_file()
    cached = {path.name for path in Path("cache").iterdir()}
    assert cached == {"README.md", "config.json", "model.safetensors"}  # the card states the licence


def test_a_folder_a_run_and_a_uri(run: Path) -> None:
    for where in (run, run / "model", "runs/tiny/", "runs/tiny/model", f"file://{run}"):
        model = npdraw_dist.load(where)
        assert isinstance(model, NPDraw)
        assert not model.training
        assert same(model, small())
        assert model.results == RESULTS
    for where in (run, f"file://{run}/model"):
        assert same(NPDraw.from_pretrained(where), small())
    # The hub's own name of the argument.
    assert NPDraw.from_pretrained(pretrained_model_name_or_path=run).spec == small().spec


def test_any_kind_of_model(tmp_path: Path) -> None:
    for kind in ("vae", "air"):
        tiny_baseline(kind).save_pretrained(tmp_path / kind)
        random_state = torch.get_rng_state()
        model = HubModel.from_pretrained(tmp_path / kind)
        assert torch.equal(torch.get_rng_state(), random_state)
        assert same(model, tiny_baseline(kind))
        assert same(type(model).from_pretrained(tmp_path / kind), model)
    opened = r"open it with npdraw_dist\.baselines\.vae\.ConvVAE\.from_pretrained\('.*vae'\)$"
    for how in (npdraw_dist.load, NPDraw.from_pretrained):
        with pytest.raises(UserError, match=rf"vae holds a model of kind VAE, not NP-DRAW; {opened}"):
            how(tmp_path / "vae")
    with pytest.raises(UserError, match=r"air holds a model of kind AIR"):
        ConvVAE.from_pretrained(tmp_path / "air")


@pytest.mark.parametrize("how", [npdraw_dist.load, NPDraw.from_pretrained])
@pytest.mark.usefixtures("run")
def test_what_is_no_model_is_told(how: Any) -> None:
    Path("empty").mkdir()
    Path("begun").mkdir()
    Path("begun/config.yaml").touch()
    for where in ("runs/tini", ".", "empty", "begun", "file:///nowhere/x", "a/b/c", "hf://one"):
        with pytest.raises(UserError, match=f"^{where} is"):
            how(where)
    with pytest.raises(UserError, match="empty"):
        how("")


def test_the_config_and_the_card_state_writer_data_and_numbers(run: Path) -> None:
    config = json.loads((run / "model" / "config.json").read_text())
    assert config["made_by"] == {"package": "npdraw_dist", **stamp()}
    assert config["results"] == RESULTS
    assert config["spec"]["data"]["seed"] == 3
    card = (run / "model" / "README.md").read_text()
    count = sum(parameter.numel() for parameter in small().parameters())
    numbers = (f"{count:,} parameters", "1,234 images", "88.2500 nats", "-92.5000 nats", "`abc`")
    for words in ("license: apache-2.0", npdraw_dist.__version__, *numbers):
        assert words in card
    assert "samples.png" not in card


def test_a_card_with_samples(tmp_path: Path) -> None:
    model = small()
    model.save_pretrained(tmp_path, model_card_kwargs={"samples": 16, "repo_id": "me/tiny"})
    assert "results" not in json.loads((tmp_path / "config.json").read_text())
    card = (tmp_path / "README.md").read_text()
    assert "has not been measured." in card
    assert "![samples](samples.png)" in card
    pixels = np.asarray(Image.open(tmp_path / "samples.png"))
    assert pixels.shape == (2 * 12, 8 * 12)
    last = (model.sample(16, seed=0)[15, 0] * 255).round().byte().numpy()
    np.testing.assert_array_equal(pixels[12::3, 84::3], last)


def test_the_snippet_of_a_card_runs(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run)
    code = (run / "model" / "README.md").read_text().split("```python\n")[1].split("```")[0]
    names: dict[str, Any] = {}
    exec(code.replace("path/of/this/folder", "model"), names)
    assert names["images"].shape == names["again"].shape == (16, 1, 4, 4)
    assert len(names["top"]) == 16
