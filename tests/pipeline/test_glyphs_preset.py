"""The preset `glyphs` from font files to scores, on fonts that matplotlib ships, without Ray."""

import json
import shutil
from pathlib import Path

import matplotlib
import pyarrow.parquet as pq
import pytest

from npdraw_dist import train
from npdraw_dist.config.load import resolve
from tests.helpers.runs import HERE

FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
SIZES = {
    "bank.size": 32,
    "prior.depth": 1,
    "prior.images": 64,
    "vae.images": 64,
    "vae.relaxed_images": 32,
    "vae.encoder_width": 16,
    "vae.decoder_width": 16,
    "eval.images": 8,
    "eval.k": 2,
    "data.valid_fraction": 0.2,
    "data.test_fraction": 0.2,
}


@pytest.mark.slow
def test_glyphs_of_unseen_families_are_scored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fonts = tmp_path / "fonts"
    fonts.mkdir()
    for font in FONTS.glob("cm*.ttf"):  # eight families of some 130 characters
        shutil.copy(font, fonts)
    sizes = [word for key, value in SIZES.items() for word in (f"--{key}", str(value))]
    own = ["--preset", "glyphs", "--data.path", str(fonts), "--storage", str(tmp_path), "--name", "run"]
    train.main([*own, *sizes, *HERE])
    run = tmp_path / "run"
    faces = {}
    for split in ("train", "valid", "test"):
        tables = [pq.read_table(path, columns=["id"]) for path in (run / "parses" / split).glob("*.parquet")]
        faces[split] = {name.split("/")[0] for table in tables for name in table.column("id").to_pylist()}
    assert sum(map(len, faces.values())) == len(set().union(*faces.values())) == len(list(fonts.iterdir()))
    assert all(faces.values())
    metrics = json.loads((run / "metrics.json").read_text())
    assert 0 < metrics["test/bits_per_dim"] < 20
    assert metrics["parse/canvas_mse"] < 0.05  # parts of thin strokes are in the bank
    assert capsys.readouterr().out.count("are streamed (data.cache_mb 0)") == 2


def test_the_budgets_are_those_of_a_million_glyphs() -> None:
    settings = resolve("glyphs", None, {"data": {"path": "fonts"}})
    assert settings.bank.max_patches >= 20_000_000
    assert min(settings.prior.images, settings.vae.images) >= 500_000
    assert settings.data.cache_mb == 0
    assert settings.data.split_by == "face"
