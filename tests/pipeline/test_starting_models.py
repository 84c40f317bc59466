"""What `init.model` takes: models of any kind, and ids of the Hugging Face hub."""

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch

import npdraw_dist
from npdraw_dist.config.load import resolve
from npdraw_dist.core.errors import UserError
from npdraw_dist.nn.baselines.vqvae import VQVAE
from npdraw_dist.pipeline import vae
from npdraw_dist.pipeline.models import source_model
from npdraw_dist.pipeline.store import fingerprint_of
from tests.helpers.tiny_baselines import TINY_PRIOR, tiny_baseline
from tests.helpers.tiny_models import tiny_model, tiny_spec
from tests.pipeline.test_fine_tuning import BUDGET
from tests.pipeline.test_fit import strokes

KINDS = ("vae", "vamp", "flow", "vqvae", "draw", "air")
OF_SETTINGS: dict[str, Any] = {
    "prior": {**TINY_PRIOR, "mlp": 4 * TINY_PRIOR["width"]}
}  # what a run's settings make


def asked(model: Path | str, /, **others: Any) -> dict[str, Any]:
    return {"data": {"source": "parquet", "path": "x"}, "init": {"model": str(model)}, **others}


@pytest.mark.parametrize("kind", KINDS)
def test_a_baseline_goes_on_from_its_weights(kind: str, tmp_path: Path) -> None:
    """Its run has its kind, its sizes and its weights; a run from scratch has others."""
    model = tiny_baseline(kind, **(OF_SETTINGS if kind == "vqvae" else {}))
    model.save_pretrained(tmp_path)
    experiment = resolve("digits", None, asked(tmp_path))
    assert experiment.model.kind == kind
    objective = vae.make_objective(experiment, source_model(experiment).state_dict())
    found = objective.model.state_dict()
    assert found.keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(value, found[name]), name
    pinned = experiment.model_dump(mode="json")
    other = resolve("digits", None, {**pinned, "init": {**pinned["init"], "sha256": None}})
    assert fingerprint_of(other, "vae") == fingerprint_of(experiment, "vae")
    pinned["init"] = {"model": None}
    assert fingerprint_of(resolve("digits", None, pinned), "vae") != fingerprint_of(experiment, "vae")


@pytest.mark.slow
def test_a_baseline_is_trained_on_with_fit(tmp_path: Path) -> None:
    """At rate 0 it stays what it was; at another it changes."""
    tiny: dict[str, Any] = {
        "baseline": {"width": 4, "depth": 1, "latents": 3},
        "model": {"kind": "vae"},
    }
    model = npdraw_dist.fit(strokes(), name="first", storage=str(tmp_path), **tiny, **BUDGET)
    still = {**BUDGET, "vae": {**BUDGET["vae"], "learning_rate": 1e-30, "weight_decay": 0.0}}
    before = model.state_dict()  # type: ignore[attr-defined]
    same = npdraw_dist.fit(strokes(), init=model, **still).state_dict()  # type: ignore[attr-defined]
    assert all(torch.equal(value, same[name]) for name, value in before.items())
    new = npdraw_dist.fit(strokes()[:40], init=str(tmp_path / "first"), **BUDGET)
    assert type(new) is type(model)
    assert new.spec.kind == "vae"
    moved = new.state_dict()  # type: ignore[attr-defined]
    assert moved.keys() == before.keys()
    assert not all(torch.equal(value, moved[name]) for name, value in before.items())


@pytest.mark.parametrize(
    ("others", "error"),
    [
        ({"model": {"kind": "npdraw"}}, "init.model is of kind vqvae, and model.kind is npdraw"),
        ({"baseline": {"codes": 9}}, r"needs baseline\.codes \d+, not 9"),
        ({"prior": {"depth": 5}}, r"needs prior\.depth 1, not 5"),
        ({"vae": {"dropout": 0.5}}, r"needs vae\.dropout 0\.0, not 0\.5"),
    ],
)
def test_what_does_not_fit_a_baseline_is_told(tmp_path: Path, others: dict[str, Any], error: str) -> None:
    model = tiny_baseline("vqvae", **OF_SETTINGS)
    assert isinstance(model, VQVAE)
    model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=error):
        resolve("digits", None, asked(tmp_path, **others))


def test_an_id_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a revision; the run keeps the id, and the SHA-256 of the weights that it found."""
    tiny_model(tiny_spec(image_shape=(1, 4, 4), steps=4, **OF_SETTINGS)).save_pretrained(tmp_path / "cached")
    monkeypatch.chdir(tmp_path)
    wanted: list[tuple[str, str | None]] = []

    def download(repo_id: str, *, revision: str | None, **_: Any) -> str:
        wanted.append((repo_id, revision))
        return str(tmp_path / "cached")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    experiment = resolve("digits", None, asked("someone/tiny@v2"))
    assert set(wanted) == {("someone/tiny", "v2")}
    assert experiment.init.model == "someone/tiny@v2"
    local = resolve("digits", None, asked(tmp_path / "cached"))
    assert experiment.init.sha256 == local.init.sha256
    assert experiment.prior.width == local.prior.width
