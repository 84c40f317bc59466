"""The command `export-demo`: the content of its file, and the models that it refuses."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from npdraw_dist.export_demo import __main__ as export_demo
from npdraw_dist.export_demo.page import Facts, demo_page, describe, license_of, pack
from npdraw_dist.nn.npdraw import NPDraw
from npdraw_dist.pipeline.trained_models import name_of
from npdraw_dist.system.errors import UserError
from tests.helpers.studio_models import GREY, save_model
from tests.helpers.tiny_models import tiny_model, tiny_spec

PAPER = "https://arxiv.org/abs/2106.13435"
FACTS = Facts("tiny", "mit", 1.0, 1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("mine"), GREY)


def test_one_file_that_loads_nothing(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "demo.html"
    export_demo.main(["--model", str(model), "--out", str(out), "--temperature", "0.8"])
    assert [file.name for file in tmp_path.iterdir()] == ["demo.html"]
    page = out.read_text("utf-8")
    assert len(page) < 500_000
    assert re.findall(r"<[^>]*https?://[^>]*>", page) == [
        f'<a href="{PAPER}" target="_blank" rel="noopener">'
    ]
    code = page.partition("<style>")[2].replace("https://arxiv.org", "")
    assert re.findall(r"https?://[^\s\"']+", code) == []
    assert not re.search(r"<(link|script|img|iframe)\b[^>]*\b(src|href)=(?!\"data:,\")", page)
    assert not re.search(r"url\((?!\$\{)|@import|\bfetch\(|XMLHttpRequest|\bimport\(", page)
    assert "default-src 'none'" in page
    for fact in ('"temperature": 0.8', '"license": "apache-2.0"', f'"name": "{model.parent.name}"'):
        assert fact in page
    assert "{{" not in page


def test_the_name_of_a_model_cannot_end_its_block() -> None:
    page = demo_page(tiny_model(tiny_spec()), Facts("</script><b>{{style}}", "mit", 1.0, 1))
    assert "</script><b>" not in page
    assert "\\u003c/script>" in page
    assert "&lt;/script&gt;&lt;b&gt;{{style}}" in page


def test_the_posterior_and_names_of_private_data_stay_away() -> None:
    names = set(pack(tiny_model(tiny_spec(latents="map:2", table="factorised"))).tensors)
    assert {name.partition(".")[0] for name in names} == {"bank", "prior", "decoder", "appearance"}
    assert not [name for name in names if "of_image" in name or "pixels" in name]
    split = {"seed": 0, "fraction": 1.0, "valid_fraction": 0.1, "test_fraction": 0.1}
    for source, named in (("emoji", "emoji"), ("parquet", None)):
        assert describe(tiny_model(tiny_spec(data={"source": source, **split})))["source"] == named


def test_the_bank_is_exact() -> None:
    model = tiny_model(tiny_spec())
    for kind, dtype, scale in (("float32", torch.float32, 1), ("bytes", torch.uint8, 255)):
        packed = pack(model)
        fact = packed.tensors["bank"]
        assert fact["type"] == kind
        content = packed.content[fact["start"] : fact["start"] + model.bank_parts.numel() * dtype.itemsize]
        bank = torch.frombuffer(content, dtype=dtype) / scale
        assert torch.equal(bank, model.bank_parts.flatten())
        model.bank_parts.mul_(255).round_().div_(255)


def another_class(module: nn.Module) -> None:
    """Gives the module another class with the same weights."""
    module.__class__ = type("Other", (type(module),), {})


def another_order(model: NPDraw) -> None:
    model.spec = model.spec.model_copy(update={"order": "spiral"})


def set_bias(model: NPDraw, value: float) -> None:
    model.state_dict()["decoder.last.bias"][0] = value


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda model: another_class(model.decoder), "the decoder"),
        (lambda model: model.prior.register_module("extra", nn.Linear(2, 2)), "prior.extra.weight"),
        (lambda model: another_class(model.prior.drawn), "the table"),
        (another_order, "the order spiral"),
        (lambda model: another_class(model.likelihood), "the likelihood"),
        (lambda model: set_bias(model, 1e6), "decoder.last.bias has values beyond"),  # float16
        (lambda model: set_bias(model, torch.nan), "decoder.last.bias has values beyond"),
    ],
)
def test_what_the_page_does_not_compute_is_refused(change: Callable[[NPDraw], None], said: str) -> None:
    model = tiny_model(tiny_spec())
    change(model)
    with pytest.raises(UserError, match=said):
        demo_page(model, FACTS)


def test_name_and_licence(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "faces" / "model"
    folder.mkdir(parents=True)
    assert name_of(str(folder)) == name_of(str(folder.parent)) == "faces"
    assert name_of("s3://bucket/runs/faces/model/") == "faces"
    assert name_of("org/letters") == "letters"
    assert license_of(str(folder)) == "apache-2.0"
    (folder / "README.md").write_text("---\ntags:\n- x\nlicense: cc-by-4.0\n---\nlicense: none\n")
    assert license_of(str(folder)) == "cc-by-4.0"
