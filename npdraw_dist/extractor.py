"""python -m npdraw_dist.extractor: a small classifier whose features measure distances between images."""

from collections.abc import Sequence
from typing import ClassVar

from npdraw_dist.config.cli import Command, parse_flags, run_command, validate
from npdraw_dist.pipeline.classifier_settings import ExtractorSettings
from npdraw_dist.training.environment import restart_with_environment


class Extractor(Command, ExtractorSettings):  # type: ignore[misc]  # pydantic-settings narrows model_config
    """Trains a classifier on a labelled data set, for `npdraw_dist.evaluate --extractor OUT`.

    A distance of its features is reported under the classifier's name, never as FID.
    """

    main_flags: ClassVar[tuple[str, ...]] = (
        *("out", "images", "features", "seed", "data.source", "data.path", "data.image_size"),
        *("data.channels", "scale.use_gpu"),
    )
    examples: ClassVar[tuple[str, ...]] = (
        "--out digits.pt",
        "--data.source fashion_mnist --data.path FOLDER --images 300000 --out fashion.pt",
    )


def main(argv: Sequence[str]) -> None:
    settings = validate(ExtractorSettings, parse_flags(Extractor, "npdraw_dist.extractor", argv))

    # Torch and Ray take seconds to import, so the flags are checked first.
    from npdraw_dist.pipeline.classifier import train_classifier

    facts = train_classifier(settings)
    accuracy = facts["valid_accuracy"]
    right = "no validation images" if accuracy is None else f"{accuracy:.1%} of validation images right"
    print(f"{settings.out}: {facts['name']}, {facts['features']} features, {right}, {facts['seconds']} s")


if __name__ == "__main__":
    restart_with_environment()
    run_command(main)
