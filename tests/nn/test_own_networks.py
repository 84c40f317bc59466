"""Encoders and decoders that the user gives to `NPDraw`, and the training loop of docs/own_loop.py."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from docs import own_loop
from npdraw_dist import NPDraw, PartBank
from npdraw_dist.system.errors import UserError
from tests.helpers.tiny_models import tiny_spec

WIDE: dict[str, Any] = {"image_shape": (1, 4, 6), "steps": 6}  # 2 x 3 places of 2 x 2 pixels


def encoder() -> nn.Module:
    return nn.Conv2d(1, 16, 2, 2)


def own(**spec: Any) -> NPDraw:
    model = NPDraw(tiny_spec(**WIDE, **spec), encoder=encoder(), decoder=nn.Conv2d(1, 1, 3, padding=1))
    model.set_bank(PartBank(torch.rand(2, 1, 2, 2)))
    return model.eval()


def test_the_loop_of_the_page_trains_and_the_bound_rises(capsys: pytest.CaptureFixture[str]) -> None:
    model = own_loop.main(prior_epochs=1, epochs=1)
    before, after = map(float, re.findall(r"(-[0-9.]+) nats", capsys.readouterr().out))
    assert before < -400
    assert after > -200
    assert model.draw(2, seed=0).images.shape == (2, 1, 24, 24)


def test_both_networks_are_used_and_trained() -> None:
    model, x = own(), torch.rand(3, 1, 4, 6).round()
    trunk = model.get_submodule("posterior.trunk")
    for name, network in (("q", trunk), ("p", model.decoder)):
        before = model.infer(x).what if name == "q" else model.decode(x)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(1)
        after = model.infer(x).what if name == "q" else model.decode(x)
        assert not torch.equal(before, after)
    model(x)[0].backward()
    used = [*trunk.parameters(), *model.decoder.parameters()]
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in used)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (
            {"encoder": nn.Conv2d(1, 16, 2, 1)},
            r"encoder maps \(2, 1, 4, 6\) to \(2, 16, 3, 5\); .* \(2, 16, 2, 3\)",
        ),
        (
            {"encoder": nn.Conv2d(3, 16, 2, 2)},
            r"encoder fails on an input of shape \(2, 1, 4, 6\): .*3 channels",
        ),
        ({"encoder": nn.LSTM(6, 16)}, r"encoder fails on an input of shape \(2, 1, 4, 6\): "),
        (
            {"decoder": nn.Conv2d(1, 2, 1)},
            r"decoder maps \(2, 1, 4, 6\) to \(2, 2, 4, 6\); .* \(2, 1, 4, 6\)",
        ),
        ({"decoder": nn.MaxPool2d(1, return_indices=True)}, r"decoder maps .* to tuple; it must give"),
    ],
)
def test_a_wrong_shape_gets_one_line_with_both_shapes(given: dict[str, nn.Module], says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        NPDraw(tiny_spec(**WIDE), **given)
    assert "\n" not in str(caught.value)


def test_what_takes_no_other_network_says_so() -> None:
    with pytest.raises(UserError, match="kind authors takes no other encoder or decoder"):
        NPDraw(tiny_spec(network="authors"), encoder=encoder())
    with pytest.raises(UserError, match="takes the canvas alone; set latents to 0, not map:2"):
        NPDraw(tiny_spec(**WIDE, latents="map:2"), decoder=nn.Identity())


def test_the_check_leaves_the_networks_as_they_were() -> None:
    norm = nn.BatchNorm2d(1)
    NPDraw(tiny_spec(**WIDE), decoder=norm)
    assert norm.training
    assert norm.num_batches_tracked == 0


def test_such_a_model_is_saved_as_weights_only(tmp_path: Path) -> None:
    model, x = own(), torch.rand(3, 1, 4, 6).round()
    with pytest.raises(UserError, match="cannot describe your own encoder and decoder; save"):
        model.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()
    again = own()
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.reconstruct(x), model.reconstruct(x))


def test_another_bank_keeps_the_users_networks() -> None:
    model, x = own(table="pixels"), torch.rand(3, 1, 4, 6).round()
    other = model.with_bank(model.bank.joined(model.bank))
    assert torch.equal(other.features(x), model.features(x))
    assert torch.equal(other.decode(x), model.decode(x))
