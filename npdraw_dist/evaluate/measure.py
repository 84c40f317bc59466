"""Scores and features of images under one model; noise is seeded by the key of each batch.

Shapes: B images of a batch, C channels, H x W pixels, D features.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from npdraw_dist.core.process import device_here
from npdraw_dist.evaluate.settings import EvaluationSettings
from npdraw_dist.measure.features import ExtractorFile
from npdraw_dist.nn.generative import GenerativeModel
from npdraw_dist.nn.likelihoods import binarized
from npdraw_dist.pipeline.scores import score_images
from npdraw_dist.training.feed import noise_seed


class Measure:
    """Measures images and samples of a model.

    Features are of images as the model takes them. how.pixels: `drawn` binarizes real images and draws
    samples from p(x|z), `mean` does neither.
    """

    def __init__(
        self,
        model: GenerativeModel,
        how: EvaluationSettings,
        gpu: bool = False,
        extractor: ExtractorFile | None = None,
    ) -> None:
        self.device = device_here(None if gpu else False)
        self.model, self.how = model.to(self.device), how
        assert how.pixels != "auto"
        self.drawn = how.pixels == "drawn"
        self._extract = None if extractor is None else extractor.open(self.device)

    def scores(
        self, images: Tensor, key: Sequence[int], condition: Tensor | None = None
    ) -> dict[str, Tensor]:
        """uint8 (B, C, H, W) -> `score_images`, each (B,)."""
        return score_images(self.model, images, self.how.k, self.how.seed, *key, condition=condition)

    def real_features(self, images: Tensor, key: Sequence[int]) -> Tensor:
        """uint8 (B, C, H, W) -> (B, D)."""
        binarize = self.model.spec.binarize if self.drawn else "none"
        return self._features(binarized(images.to(self.device), binarize, self._generator(key)))

    def sample_features(self, count: int, key: Sequence[int]) -> Tensor:
        """(count, D) of new samples."""
        draw = self.model.sample_pixels if self.drawn else self.model.sample
        return self._features(draw(count, self._generator(key), self.how.temperature))

    def _features(self, images: Tensor) -> Tensor:
        assert self._extract is not None, "there is no extractor"
        return self._extract(images.float())

    def _generator(self, key: Sequence[int]) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(noise_seed(self.how.seed, *key))
