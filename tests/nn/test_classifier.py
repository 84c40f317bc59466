"""The classifier whose features measure distances."""

import torch

from npdraw_dist.nn.classifier import Classifier


def test_features_are_standard_and_scripted_alike() -> None:
    torch.manual_seed(0)
    model = Classifier((3, 9, 10), 4, 6).eval()
    images = torch.rand(200, 3, 9, 10)
    logits = model.logits(images)
    model.standardize(images)
    features = model(images)
    torch.testing.assert_close(features.mean(0), torch.zeros(6), atol=1e-4, rtol=0)
    torch.testing.assert_close(features.std(0), torch.ones(6), atol=1e-3, rtol=0)
    torch.testing.assert_close(torch.jit.script(model)(images), features)
    assert logits.shape == (200, 4)
    torch.testing.assert_close(model.logits(images), logits)  # the classes are as before
