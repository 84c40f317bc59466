"""Runs any command of the package. For example, `npdraw train` is `python -m npdraw_dist.train`."""

import sys
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from typing import NamedTuple

from npdraw_dist.config.cli import print_script, run_command
from npdraw_dist.config.load import require_known
from npdraw_dist.system.version import __version__


class Entry(NamedTuple):
    """A command. flags: the "module:class" of its flags, imported without torch or Ray. does: summary."""

    flags: str
    does: str

    @property
    def file(self) -> str:
        """The module that has the command's function `main`."""
        return self.flags.partition(":")[0]

    @property
    def module(self) -> str:
        """The command's name for `python -m`."""
        return self.file.removesuffix(".__main__")


COMMANDS = {
    "train": Entry("npdraw_dist.train:Train", "train a model, or resume its training"),
    "fit": Entry("npdraw_dist.fitting.__main__:Fit", "train on a folder of your pictures, in ten minutes"),
    "sample": Entry("npdraw_dist.sample:Sample", "draw samples of a model, and their animation"),
    "edit": Entry(
        "npdraw_dist.edit.__main__:Edit",
        "put parts of one image on another, or let the prior complete a drawing",
    ),
    "evaluate": Entry(
        "npdraw_dist.evaluate.__main__:Evaluate", "measure a model on a split, or compare runs"
    ),
    "runs": Entry("npdraw_dist.runs:Runs", "list the runs of a storage: state, time and numbers"),
    "train-extractor": Entry(
        "npdraw_dist.train_extractor:TrainExtractor", "train a classifier whose features measure distances"
    ),
    "serve": Entry("npdraw_dist.serve.__main__:Serve", "the studio in the browser, and its HTTP API"),
    "export-demo": Entry(
        "npdraw_dist.export_demo.__main__:ExportDemo", "write a page that draws in the browser alone"
    ),
    "bank": Entry("npdraw_dist.bank.__main__:MakeBank", "cluster images into a bank of parts"),
    "models": Entry("npdraw_dist.models:Models", "list the trained models that come with the package"),
    "presets": Entry("npdraw_dist.presets:Presets", "list the presets of `npdraw train`"),
    "prepare": Entry("npdraw_dist.prepare:Prepare", "write a data set once as Parquet or tar shards"),
    "sweep": Entry("tune_spaces.sweep:Sweep", "search settings with Ray Tune"),
    "report": Entry("tune_spaces.report:Report", "compare the models of finished comparisons, once, on test"),
    "bench": Entry("npdraw_dist.bench.__main__:Bench", "measure this machine"),
}
SHELL_SETUP = "print-shell-setup"
HELP = "\n".join(
    [
        "usage: npdraw COMMAND [--FLAG VALUE ...]",
        "       npdraw COMMAND --help, or --help-all",
        "       npdraw --version",
        "",
        "NP-DRAW, the image model that draws part by part.",
        "",
        *(f"  {name:<19}{entry.does}" for name, entry in COMMANDS.items()),
        f"  {SHELL_SETUP:<19}print the script by which the Tab key finishes commands and flags",
        "",
        "A command's own flags have dashes; settings are written as in config.yaml. A switch needs no value.",
        "",
        "examples:",
        "  npdraw serve                                     draw emoji in the browser",
        "  npdraw fit my_pictures                           a model of your pictures, in ten minutes",
        "  npdraw train                                     the digits, in one to two minutes",
        "  npdraw train --preset emoji                      colour emoji",
        "  npdraw sample --model runs/digits --out samples",
        "  npdraw edit --model runs/digits --a sample:1 --keep 0:3,: --n 4 --out completed",
        "  source <(npdraw print-shell-setup bash)          the Tab key finishes commands in this shell",
    ]
)


def main() -> None:
    name, rest = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("--help", [])
    if name in ("--help", "-h", "help"):
        print(HELP)
    elif name == "--version":
        print(f"npdraw {__version__}")
    elif name == SHELL_SETUP and rest in (["--help"], ["-h"]):
        print(f"usage: npdraw {name} bash | zsh | tcsh")
    else:
        sys.argv = [f"npdraw {name}", *rest]
        run_command(partial(run, name))


def run(name: str, words: Sequence[str]) -> None:
    """Runs the command `name`. Raises UserError on an unknown one."""
    require_known("command", name, [*COMMANDS, SHELL_SETUP])
    if name == SHELL_SETUP:
        print_script(words, COMMANDS)
    else:
        import_module(COMMANDS[name].file).main(words)


if __name__ == "__main__":
    main()
