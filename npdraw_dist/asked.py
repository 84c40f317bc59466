"""npdraw asked: how often a model draws what it is asked for, as classifiers of real images read it."""

from collections.abc import Sequence

from npdraw_dist.config.cli import parse_flags, run_command, validate
from npdraw_dist.evaluate.settings import Asked


def main(argv: Sequence[str]) -> None:
    settings = validate(Asked, parse_flags(Asked, "npdraw_dist.asked", argv))

    from npdraw_dist.evaluate.asked import ask  # torch takes seconds to import

    for name, facts in ask(settings).items():
        for kind in ("seen", "held_out"):
            if facts[f"{kind}_drawings"]:
                print(
                    f"{name}, {kind.replace('_', ' ')}: {facts[f'{kind}_right']:.1%} of "
                    f"{facts[f'{kind}_drawings']} drawings are read as asked"
                )
    print(f"{settings.out}/asked.json, {settings.out}/asked.png")


if __name__ == "__main__":
    run_command(main)
