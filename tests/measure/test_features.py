"""Extractors of every kind: what they see, what they give, and what is refused in a line."""

import io
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor, nn

from npdraw_dist.measure.features import ExtractorFile, facts_of
from npdraw_dist.system.errors import UserError

CPU = torch.device("cpu")
MODULE = """
import torch

class Means(torch.nn.Module):
    def forward(self, images):
        return images.mean((2, 3))

instance = Means()
def fails():
    raise RuntimeError("no weights\\nhere")
class Wrong(torch.nn.Module):
    def __init__(self, what):
        super().__init__()
        self.what = what
    def forward(self, images):
        return self.what(images)
flat = Wrong(lambda images: images.mean())
whole = Wrong(lambda images: images.mean((2, 3)).long())
nan = Wrong(lambda images: images.mean((2, 3)) * float("nan"))
words = Wrong(lambda images: "features")
picky = Wrong(lambda images: images.view(1, 2, 3))
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "own_features.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    return "own_features"


class Sums(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.sum((2, 3))


def script(extra: dict[str, str] | None = None) -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(Sums()), buffer, _extra_files=extra or {})
    return buffer.getvalue()


def test_attributes_of_a_module_and_torchscript_from_bytes(module: str) -> None:
    images = torch.rand(4, 3, 8, 8)
    for name in ("Means", "instance"):
        file = ExtractorFile("attribute", f"{module}:{name}")
        torch.testing.assert_close(file.open(CPU)(images), images.mean((2, 3)))
    file = ExtractorFile("torchscript", "sums.pt", script())
    torch.testing.assert_close(file.open(CPU)(images), images.sum((2, 3)))
    assert facts_of(script()) == {}
    assert facts_of(script({"facts.json": '{"name": "classifier-digits"}'})) == {"name": "classifier-digits"}


@pytest.mark.parametrize("name", ["own_features:missing", "no_such_module_here:Net", "own_features:fails"])
def test_what_cannot_be_opened(module: str, name: str) -> None:
    with pytest.raises(UserError, match="cannot be opened") as error:
        ExtractorFile("attribute", name).open(CPU)
    assert "\n" not in str(error.value)
    assert name in str(error.value)


@pytest.mark.parametrize(
    ("attribute", "says"),
    [
        ("flat", r"gives \(\) torch.float32; it must give \(4, D\) floating"),
        ("whole", "torch.int64"),
        ("nan", "NaN or infinite"),
        ("words", "gives a str"),
        ("picky", r"fails on images \(4, 1, 8, 8\)"),
    ],
)
def test_a_wrong_output(module: str, attribute: str, says: str) -> None:
    extract = ExtractorFile("attribute", f"{module}:{attribute}").open(CPU)
    with pytest.raises(UserError, match=says) as error:
        extract(torch.rand(4, 1, 8, 8))
    assert "\n" not in str(error.value)


class Trap:
    """Runs code where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit('the file ran code')",))


@pytest.mark.parametrize("content", [b"junk", "pickle", "other weights"])
def test_files_that_are_no_inception_weights(content: Any) -> None:
    if isinstance(content, str):
        buffer = io.BytesIO()
        torch.save(Trap() if content == "pickle" else {"a": torch.ones(1)}, buffer)
        content = buffer.getvalue()
    with pytest.raises(UserError, match="cannot be opened"):
        ExtractorFile("inception", "inception-v3-compat", content, dimensions=64).open(CPU)


def test_inception_with_weights_from_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Random weights of the right names: grey images become three equal channels of whole bytes."""
    from torch_fidelity import feature_extractor_inceptionv3 as inception

    class Blank(inception.FeatureExtractorInceptionV3):
        def load_state_dict(self, *_: Any, **__: Any) -> None:
            """Keeps the initial weights."""

    monkeypatch.setattr(inception, "load_state_dict_from_url", Mock(side_effect=AssertionError))
    torch.save({}, tmp_path / "empty.pth")
    torch.manual_seed(0)
    weights = Blank("inception-v3-compat", ["64"], str(tmp_path / "empty.pth")).state_dict()
    buffer = io.BytesIO()
    torch.save(dict(weights), buffer)
    file = ExtractorFile("inception", "inception-v3-compat", buffer.getvalue(), dimensions=64)
    extract = file.open(CPU)
    grey = torch.rand(2, 1, 28, 28)
    found = extract(grey)
    assert found.shape == (2, 64)
    torch.testing.assert_close(found, extract((grey * 255).round().expand(-1, 3, -1, -1) / 255))
    assert not file.is_inception  # the FID takes all 2,048
    assert ExtractorFile("inception", "inception-v3-compat", dimensions=2048).is_inception
