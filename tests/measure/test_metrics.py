"""The table of metrics: how numbers are printed, and that what is measured is in it."""

from npdraw_dist.measure.metrics import COMPARED, METRICS, WITH_ERROR, format_metrics


def test_a_number_has_its_decimals_and_its_standard_error() -> None:
    numbers = {"test/nll_iwae": 1234.567, "test/nll_iwae_se": 0.4, "test/bits_per_dim": 0.17471}
    assert format_metrics(numbers, "nll_iwae", "elbo", "bits_per_dim", prefix="test/") == (
        "NLL 1,234.57 ± 0.40 nats, bits/dim 0.1747"
    )
    bounds = {"elbo": -2.0, "nll_iwae": 1.0, "nll_iwae_se": 0.5, "kl_what": 3.0}  # in the table's order
    assert format_metrics(bounds) == "NLL 1.00 ± 0.50 nats, ELBO -2.00 nats"
    assert METRICS["parameters"].format(1234567) == "1,234,567"
    assert METRICS["elbo"].format(None) == ""


def test_which_metrics_are_compared_and_which_have_an_error() -> None:
    assert list(COMPARED[:4]) == ["nll_iwae", "nll_iwae_se", "elbo", "bits_per_dim"]
    assert list(COMPARED[4:8]) == ["frechet_distance", "kernel_distance", "precision", "recall"]
    assert list(COMPARED[8:]) == ["parameters", "images_seen", "train_seconds"]
    assert list(WITH_ERROR) == ["nll_iwae", "elbo", "authors_estimator"]
