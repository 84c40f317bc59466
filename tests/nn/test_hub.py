"""Models found in a folder, a run, at a URI or on a hub (a stand-in of its API), and what they state."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import npdraw_dist
from npdraw_dist.config.spec import SplitSpec
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.made_by import stamp
from npdraw_dist.nn.baselines.vae import ConvVAE
from npdraw_dist.nn.npdraw import NPDraw
from tests.helpers.hub_server import TOKEN, hub_server
from tests.helpers.tiny_baselines import tiny_baseline
from tests.helpers.tiny_models import tiny_model, tiny_spec

CODE = """
import sys
import torch
import npdraw_dist
from npdraw_dist import NPDraw
from npdraw_dist.core.errors import UserError

model = npdraw_dist.load("model")
print(model.push_to_hub("me/tiny", commit_message="the first"))
again = npdraw_dist.load("me/tiny")
pinned = NPDraw.from_pretrained("me/tiny@main")
for name, value in model.state_dict().items():
    assert torch.equal(value, again.state_dict()[name]), name
    assert torch.equal(value, pinned.state_dict()[name]), name
for where in ("me/none", "me/tiny@none"):
    try:
        npdraw_dist.load(where)
    except UserError as error:
        print(error)
from npdraw_dist import sample
sample.main(["--model", "me/tiny", "--n", "2", "--out", "drawn"])
"""


@pytest.mark.few(1)
def test_a_model_goes_to_the_hub_and_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_model(tiny_spec(image_shape=(1, 4, 4), steps=4)).save_pretrained(tmp_path / "model")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    with hub_server() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        done = subprocess.run(
            [sys.executable, "-c", CODE], cwd=tmp_path, capture_output=True, text=True, timeout=240
        )
    assert done.returncode == 0, done.stderr[-3000:]
    files = hub.repositories["me/tiny"]
    assert set(files) == {"README.md", "config.json", "model.safetensors", "samples.png"}
    assert files["model.safetensors"] == (tmp_path / "model" / "model.safetensors").read_bytes()
    assert 'npdraw_dist.load("me/tiny")' in files["README.md"].decode()
    assert files["samples.png"].startswith(b"\x89PNG")
    commit = hub.commit_of("me/tiny")
    assert f"{hub.url}/me/tiny/commit/{commit}" in done.stdout
    told = [line for line in done.stdout.splitlines() if "cannot be read from the hub" in line]
    assert [line.split()[0] for line in told] == ["me/none", "me/tiny@none"]
    assert told[0].endswith("it has no such model, or shows it only with another token")
    assert told[1].endswith("it has no revision none of this model")
    assert (tmp_path / "drawn" / "samples.png").is_file()
    downloads = [line for line in hub.requests if line.startswith("GET /me/tiny/resolve/")]
    assert {line.rpartition("/")[2] for line in downloads} == {"config.json", "model.safetensors"}


DATA = SplitSpec(source="digits", seed=3, fraction=1.0, valid_fraction=0.1, test_fraction=0.2, inputs="abc")
RESULTS: dict[str, Any] = {
    **{"split": "test", "n": 1234, "k": 50, "nll_iwae": 88.25, "elbo": -92.5},
    "protocol": "Seed 0.",
}


def small() -> NPDraw:
    return tiny_model(tiny_spec(image_shape=(1, 4, 4), steps=4, data=DATA))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with a model, and its model with numbers."""
    model = small()
    model.results = RESULTS
    model.save_pretrained(tmp_path / "runs" / "tiny" / "model")
    (tmp_path / "runs" / "tiny" / "config.yaml").write_text("seed: 0\n")
    return tmp_path / "runs" / "tiny"


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> str:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refused)


def same(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_folder_a_run_and_a_uri(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.parents[1])
    for where in (run, run / "model", "runs/tiny", "runs/tiny/", "runs/tiny/model", f"file://{run}"):
        model = npdraw_dist.load(where)
        assert isinstance(model, NPDraw)
        assert not model.training
        assert same(model, small())
        assert model.results == RESULTS
    for where in (run, f"file://{run}/model"):
        assert same(NPDraw.from_pretrained(where), small())


def test_any_kind_of_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for kind in ("vae", "air"):
        tiny_baseline(kind).save_pretrained(tmp_path / kind)
        model = npdraw_dist.load(tmp_path / kind)
        assert same(model, tiny_baseline(kind))
        assert same(type(model).from_pretrained(tmp_path / kind), model)
    assert capsys.readouterr().out == ""
    with pytest.raises(UserError, match=r"vae holds a model of kind VAE; take npdraw_dist\.load\("):
        NPDraw.from_pretrained(tmp_path / "vae")
    with pytest.raises(UserError, match=r"air holds a model of kind AIR"):
        ConvVAE.from_pretrained(tmp_path / "air")


def test_what_is_no_model_is_told(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.parents[1])
    Path("empty").mkdir()
    Path("begun").mkdir()
    Path("begun/config.yaml").touch()
    for where, error in {
        "runs/tini": r"runs/tini is no model folder .*; train one",
        "empty": "empty is no model folder",
        "begun": "begun is a run without a model yet",
        "file:///nowhere/x": "file:///nowhere/x is no model folder",
        "": "empty; is a variable unset",
        "a/b/c": "a/b/c is no model folder",
        "hf://one": "hf://one is no id of the hub",
    }.items():
        for how in (npdraw_dist.load, NPDraw.from_pretrained):
            with pytest.raises(UserError, match=error):
                how(where)


def rewritten(run: Path, **changes: Any) -> None:
    file = run / "model" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_a_model_of_another_format_is_told(run: Path) -> None:
    rewritten(run, made_by={"package": "npdraw_dist", "version": "9.1.0", "format": 3})
    with pytest.raises(UserError, match=r"made by npdraw_dist 9\.1\.0 in format 3, .*: use version 9"):
        npdraw_dist.load(run)


@pytest.mark.parametrize("config", [{"spec": None}, {"spec": {"kind": "gan"}}, {"spec": {"kind": "vae"}}])
def test_a_damaged_config_is_told(run: Path, config: dict[str, Any]) -> None:
    rewritten(run, **config)
    with pytest.raises(UserError, match=r"tiny (holds|is damaged)"):
        npdraw_dist.load(run)


def test_a_network_that_cannot_be_is_told(run: Path) -> None:
    spec = json.loads((run / "model" / "config.json").read_text())["spec"]
    rewritten(run, spec={**spec, "patch": 99})
    with pytest.raises(UserError, match="tiny is damaged or of another version"):
        npdraw_dist.load(run)


def test_the_hubs_own_names_of_arguments(run: Path) -> None:
    model = NPDraw.from_pretrained(pretrained_model_name_or_path=run)
    assert model.spec == small().spec


def test_damaged_weights_are_told(run: Path) -> None:
    weights = run / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    for how in (npdraw_dist.load, NPDraw.from_pretrained):
        with pytest.raises(UserError, match="tiny is damaged or of another version"):
            how(run)


def test_the_config_states_writer_data_and_numbers(run: Path) -> None:
    config = json.loads((run / "model" / "config.json").read_text())
    assert config["made_by"] == {
        "package": "npdraw_dist",
        **stamp(),
    }
    assert config["results"] == RESULTS
    assert config["spec"]["data"]["seed"] == 3
    small().save_pretrained(run / "other")
    assert "results" not in json.loads((run / "other" / "config.json").read_text())


def test_the_card_says_what_the_model_is(run: Path) -> None:
    card = (run / "model" / "README.md").read_text()
    count = sum(parameter.numel() for parameter in small().parameters())
    for words in (
        "license: apache-2.0",
        "# NP-DRAW of 4x4 grey images of `digits`",
        f"{count:,} parameters",
        "1,234 images of the split `test`, 50 importance samples. Seed 0.",
        "| `nll_iwae` | 88.2500 nats |",
        "| `elbo` | -92.5000 nats |",
        "seed of the splits 3. Digest of the files: `abc`",
        "npdraw_dist.load(",
        "## Limits",
        "Apache-2.0",
        "@inproceedings{zeng2021npdraw,",
        npdraw_dist.__version__,
    ):
        assert words in card
    assert "More Information" not in card
    assert "samples.png" not in card
    tiny_baseline("vae").save_pretrained(run / "vae")
    assert "Not measured." in (run / "vae" / "README.md").read_text()


def test_a_card_with_samples(tmp_path: Path) -> None:
    model = small()
    model.save_pretrained(tmp_path, model_card_kwargs={"samples": 16, "repo_id": "me/tiny"})
    card = (tmp_path / "README.md").read_text()
    assert "![samples](samples.png)" in card
    assert 'npdraw_dist.load("me/tiny")' in card
    pixels = np.asarray(Image.open(tmp_path / "samples.png"))
    assert pixels.shape == (2 * 12, 8 * 12)
    last = (model.sample(16, seed=0)[15, 0] * 255).round().byte().numpy()
    np.testing.assert_array_equal(pixels[12::3, 84::3], last)


def test_the_snippet_of_a_card_runs(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run)
    (code,) = (run / "model" / "README.md").read_text().split("```python\n")[1].split("```")[:1]
    names: dict[str, Any] = {}
    exec(code.replace("path/of/this/folder", "model"), names)
    assert names["images"].shape == names["again"].shape == (16, 1, 4, 4)
    assert len(names["top"]) == 16
