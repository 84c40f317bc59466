"""The stage `prior` gives its network the bank where that looks at the parts. Without Ray."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from npdraw_dist.config.load import with_changes
from npdraw_dist.core.parts import PartBank
from npdraw_dist.pipeline import prior
from npdraw_dist.pipeline.store import Store


class Stopped(Exception):
    """Before the training."""


@pytest.mark.few(1)
@pytest.mark.parametrize(("network", "sees"), [({}, False), ({"table": "factorised"}, True)])
def test_the_bank_goes_to_a_prior_that_looks_at_it(
    network: dict[str, Any], sees: bool, run_here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(run_here, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "prior")
    store = Store.open(str(tmp_path), "run")
    experiment = with_changes(store.config(), {"prior": network})
    started: list[Any] = []

    def train(*arguments: Any) -> None:
        started.extend(arguments)
        raise Stopped

    monkeypatch.setattr(prior, "run_stage", train)
    with pytest.raises(Stopped):
        prior.run(experiment, store)
    *_, make_objective, start, _ = started
    found = dict(make_objective(experiment, start).prior.named_buffers())
    parts = PartBank.load(tmp_path / "run" / "bank" / "bank.safetensors").parts
    assert ("bank_parts" in start) == sees
    assert [bool(torch.equal(value, parts)) for value in found.values()] == [True] * sees
