"""npdraw models: lists the trained models that come with the package."""

import json
from collections.abc import Sequence

import yaml

from npdraw_dist.config.cli import Command, parse_flags, run_command, validate
from npdraw_dist.config.networks import CONDITIONS
from npdraw_dist.system.model_files import CONFIG, WEIGHTS, ZOO, zoo_names

FACTS = "models.yaml"  # name -> what it draws, the licence of its data, the command that trains it


class Models(Command):
    """Lists the models that come with the package: what they draw, their size, scores and pictures.

    Use a model by its name: `npdraw sample --model emoji`, or npdraw_dist.load("emoji").
    """

    examples = ("",)


def lines_of(name: str) -> list[str]:
    """The lines that describe a model; the first states its name and what it draws."""
    folder, facts = ZOO / name, yaml.safe_load((ZOO / FACTS).read_text())[name]
    config = json.loads((folder / CONFIG).read_text())
    spec, results = config["spec"], config.get("results") or {}
    channels, height, width = spec["image_shape"]
    condition = CONDITIONS.get(spec["prior"]["condition"])
    conditioned = "" if condition is None else f", conditioned {condition.phrase}"
    size = (folder / WEIGHTS).stat().st_size / 1e6
    lines = [
        f"{name}: {facts['draws']}",
        f"{channels}x{height}x{width}, {spec['parts']} parts{conditioned}, {size:.1f} MB",
    ]
    if results:
        bits = f", {results['bits_per_dim']:.3f} bits/dim" if "bits_per_dim" in results else ""
        told = f"{results['n']} images of the split {results['split']}"
        lines.append(f"NLL {results['nll_iwae']:.2f} nats{bits}, of {told}")
    made = [f"data: {facts['data']}", f"trained by: {facts['command']}", f"pictures and card: {folder}"]
    return [*lines, *made]


def main(argv: Sequence[str]) -> None:
    validate(Models, parse_flags(Models, "npdraw_dist.models", argv))
    for name in zoo_names():
        print("\n  ".join(lines_of(name)))


if __name__ == "__main__":
    run_command(main)
