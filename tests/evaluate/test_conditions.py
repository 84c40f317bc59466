"""`npdraw evaluate --check-conditions` on a model that draws light images whatever is requested."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from npdraw_dist.core.vocabulary import Words
from npdraw_dist.evaluate import __main__ as evaluate
from npdraw_dist.evaluate import conditions

SEEN, HELD_OUT = ["dark large", "dark small", "light small"], ["light large"]


def images_of(texts: list[str]) -> SimpleNamespace:
    """Grey images of 8 x 8 pixels, as light as their text."""
    levels = torch.tensor([230 if "light" in text else 20 for text in texts], dtype=torch.uint8)
    return SimpleNamespace(images=levels[:, None, None, None].expand(-1, 1, 8, 8).clone())


def test_drawings_are_read_by_classifiers_of_real_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = SimpleNamespace(images=torch.full((3, 1, 8, 8), 0.9), canvas=None, u=None)
    model = SimpleNamespace(
        vocabulary=Words(["dark", "light", "small", "large"], 2),
        guidance_of=lambda _: 1.5,
        temperature_of=lambda _: 1.0,
        given=lambda text, guidance: SimpleNamespace(draw=lambda n, **_: drawn),
    )
    train, valid = SEEN * 20, (SEEN + HELD_OUT) * 5
    data = SimpleNamespace(
        **{"shape": (1, 8, 8), "binarize": "none", "words": lambda text: frozenset(text.split())},
        **{"train": images_of(train), "train_texts": train, "seen": SEEN},
        **{"valid": images_of(valid), "valid_texts": valid, "held_out": HELD_OUT},
    )
    monkeypatch.setattr(conditions, "IMAGES", 640)
    monkeypatch.setattr(conditions, "chosen_model", lambda model: model)
    monkeypatch.setattr(conditions, "load_npdraw", lambda folder: model)
    monkeypatch.setattr(conditions, "_Conditions", lambda model, folder: data)
    (tmp_path / "tones.yaml").write_text("tone: [light, dark]")
    flags = ["--model", "m", "--check-conditions", "--attributes", str(tmp_path / "tones.yaml"), "--n", "3"]
    evaluate.main([*flags, "--out", str(tmp_path / "out")])
    found = json.loads((tmp_path / "out" / "conditions.json").read_text())["attributes"]["tone"]
    assert (found["training_images"], found["held_out_images_right"]) == (60, 1.0)
    assert (found["seen_right"], found["seen_drawings"]) == (pytest.approx(1 / 3), 9)
    assert (found["held_out_right"], found["held_out_drawings"]) == (1.0, 3)
    assert "tone, held out: 100.0% of 3 drawings are read as requested" in capsys.readouterr().out
    assert (tmp_path / "out" / "conditions.png").exists()
