"""Distances of a model's samples to the images of a split, with the pool's features.

Apart from the actors' module, so that these need not import what takes the distances.
Shapes: N real images, M generated ones, D features.
"""

from typing import Any

import ray
import torch
from torch import Tensor

from npdraw_dist.evaluate.feature_actors import Features, Samples
from npdraw_dist.evaluate.pools import Pool, Work, in_order
from npdraw_dist.measure.distances import frechet_distance, kernel_distance, precision_recall, require_enough
from npdraw_dist.measure.features import ExtractorFile
from npdraw_dist.nn.generative import GenerativeModel

SAMPLES = 64  # drawn at once, with noise of their own seed


def distances(
    model: GenerativeModel,
    work: Work,
    file: ExtractorFile,
    samples: int,
    pixels: str,
    temperature: float,
    seed: int,
    pool: Pool,
) -> dict[str, Any]:
    """Frechet and kernel distance, precision and recall of `samples` samples to the images of `work`."""
    batches = [
        Samples(number, min(SAMPLES, samples - start))
        for number, start in enumerate(range(0, samples, SAMPLES))
    ]
    items: list[Any] = [*work.portions, *batches]
    found = pool.run(
        "distance",
        items,
        work.images + samples,
        Features,
        [ray.put(model)],
        file,
        seed,
        pixels,
        temperature,
    )
    real, generated = _features(found, "real"), _features(found, "generated")
    require_enough(len(real), len(generated), real.shape[1])
    frechet = frechet_distance(real, generated)
    kernel, kernel_std = kernel_distance(real, generated, seed)
    precision, recall = precision_recall(real, generated)
    return {
        "distance": "FID" if file.is_inception else f"Frechet distance of {file.name}",
        "frechet_distance": frechet,
        "kernel_distance": kernel,
        "kernel_distance_std": kernel_std,
        "precision": precision,
        "recall": recall,
        **({"fid": frechet, "kid": kernel} if file.is_inception else {}),
        "n_real": len(real),
        "n_generated": len(generated),
        "features": real.shape[1],
    }


def _features(found: list[dict[str, Any]], key: str) -> Tensor:
    return torch.cat([torch.from_numpy(part) for part in in_order(found, key)])
