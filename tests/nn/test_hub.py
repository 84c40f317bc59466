"""Models are pushed to a hub and loaded by id, from Python and by --model; here a stand-in of its API."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.hub_server import TOKEN, hub_server
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
