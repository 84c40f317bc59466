"""The line about a stage whose validation fell, and which weights it passes on."""

from pathlib import Path

import pytest
import torch

from npdraw_dist.pipeline import prior, vae
from npdraw_dist.pipeline.store import Store
from npdraw_dist.pipeline.train_stage import StageDisplay, fall_note, selected_checkpoint
from npdraw_dist.training import checkpoint

FALL = {"metric": "valid/elbo", "best": -96.7, "best_at": 96_000, "now": -125.0, "now_at": 176_000}
NOTE = "validation fell: valid/elbo is -125.00 after 176,000 images; its best was -96.70 after 96,000"


def test_the_table_at_the_end_names_the_fall() -> None:
    assert prior.describe({"valid_nll": 30.0, "fell_from_best": FALL}) == f"validation NLL 30.00 nats; {NOTE}"
    assert vae.describe({"parameters": 1234, "fell_from_best": FALL}) == f"1,234 parameters; {NOTE}"


def test_a_sound_stage_has_no_note() -> None:
    assert fall_note({"fell_from_best": None}) is None
    assert vae.describe({"parameters": 1234, "fell_from_best": None}) == "1,234 parameters"


def test_a_damaged_checkpoint_that_is_not_selected_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else `last` would pass on older weights in silence."""
    store = Store.open(str(tmp_path), "run")
    layer = torch.nn.Linear(1, 1)
    for step in (1, 2):
        folder = tmp_path / "run" / "prior" / f"checkpoint_{step:09d}"
        folder.mkdir(parents=True)
        checkpoint.save(folder, layer, torch.optim.SGD(layer.parameters()), {"step": step, "record": {}})
    (folder / "state.safetensors").write_bytes(b"damaged")
    found = selected_checkpoint(store, "prior", "last")
    assert found.path.endswith("checkpoint_000000001")
    assert "prior: damaged, not used: " in capsys.readouterr().out


@pytest.mark.parametrize("line", ["no [/tmp/x] there", "[red]text[/red]", "[../gloo/pair.cc:1] closed"])
def test_a_line_is_shown_as_it_is(line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Though a part of it looks like markup."""
    store = Store.open(str(tmp_path), "run")
    StageDisplay(store, "prior", lambda done, rate=0.0, note="": None).say(line)
    assert capsys.readouterr().out == f"prior: {line}\n"
