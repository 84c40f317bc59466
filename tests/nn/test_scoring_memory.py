"""Memory of the importance samples: it is bounded, whatever k, and fits a share of a small GPU."""

import pytest
import torch

from npdraw_dist.config.load import preset_names, resolve
from npdraw_dist.config.registry import KINDS
from npdraw_dist.config.spec import BaselineSpec, ModelSpec
from npdraw_dist.nn import generative
from npdraw_dist.nn.generative import CHUNK, GPU_CHUNK, GenerativeModel
from npdraw_dist.nn.npdraw import NPDraw
from npdraw_dist.pipeline.scores import BATCH, K_CHUNK
from tests.helpers.memory import PeakMemory
from tests.helpers.tiny_baselines import make_baseline

# A quarter of a T4, less the context and the weights.
MOST_GB = 3.0


def model_of(preset: str, kind: str = "npdraw") -> GenerativeModel:
    """On `meta`, with the sizes of the preset."""
    experiment = resolve(preset, None, {"model": {"kind": kind}, "scale": {"num_workers": 1}})
    with torch.device("meta"):
        if kind == "npdraw":
            return NPDraw(ModelSpec.of(experiment)).eval()
        return make_baseline(BaselineSpec.of(experiment)).eval()


def peak_gb(model: GenerativeModel, k: int) -> float:
    x = torch.empty(BATCH, *model.spec.image_shape, device="meta")
    with PeakMemory() as memory:
        model.importance(x, k, None)
    return memory.peak / 1e9


@pytest.mark.few(2)
@pytest.mark.parametrize("preset", preset_names())
def test_scoring_fits_a_quarter_of_a_small_gpu(preset: str) -> None:
    assert 0.001 < peak_gb(model_of(preset), K_CHUNK) < MOST_GB


@pytest.mark.few(1)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "npdraw"])
def test_scoring_a_baseline_fits_too(kind: str) -> None:
    for preset in ("mnist", "cifar10"):
        assert 0.001 < peak_gb(model_of(preset, kind), K_CHUNK) < MOST_GB


def test_memory_does_not_grow_with_k() -> None:
    model = model_of("mnist")
    few, many = (peak_gb(model, k) for k in (GPU_CHUNK // BATCH, 8 * GPU_CHUNK // BATCH))
    assert many < 1.02 * few


def test_the_chunk_is_that_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU the noise is as it was; there a chunk of 256 rows is 8 draws of 32 images."""
    assert (CHUNK, GPU_CHUNK, K_CHUNK, BATCH) == (256, 512, 50, 32)
    for device, rows in (("cpu", 8 * 32), ("meta", 16 * 32)):
        seen: list[int] = []

        def draw(copies: int, seen: list[int] = seen, device: str = device) -> generative.Importance:
            seen.append(copies * BATCH)
            row = torch.zeros(copies * BATCH, device=device)
            return generative.Importance(row, row, {"kl": row})

        found = generative.in_chunks(K_CHUNK, torch.zeros(BATCH, 1, 2, 2, device=device), draw)
        assert found.log_w.shape == (K_CHUNK, BATCH)
        assert max(seen) == seen[0] == rows
        assert sum(seen) == K_CHUNK * BATCH


def test_the_peak_is_that_of_what_lives_at_once() -> None:
    with PeakMemory() as memory:
        a = torch.empty(1000, device="meta")
        b = a + 1
        del a
        c = b.view(10, 100) * 2
        del b
        c += 1
    assert memory.peak == 8000
