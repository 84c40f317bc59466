"""npdraw COMMAND ...: all commands by one name. `npdraw train` is `python -m npdraw_dist.train`."""

import runpy
import sys

from npdraw_dist import __version__

# name -> its module, and what it does.
COMMANDS = {
    "train": ("npdraw_dist.train", "train a model: bank, parse, prior, vae, sample"),
    "sample": ("npdraw_dist.sample", "draw samples of a model, and their animation"),
    "edit": ("npdraw_dist.edit", "put parts of one image on another, or let the prior complete a drawing"),
    "evaluate": ("npdraw_dist.evaluate", "measure a model on a split, or compare runs"),
    "extractor": ("npdraw_dist.extractor", "train a classifier whose features measure distances"),
    "serve": ("npdraw_dist.serve", "the editor in the browser, and its HTTP API"),
    "prepare": ("npdraw_dist.prepare", "write a data set once as Parquet or tar shards"),
    "sweep": ("tune_spaces.sweep", "search settings with Ray Tune"),
    "bench": ("npdraw_dist.bench", "measure this machine, and plan a cluster"),
}
HELP = "\n".join(
    [
        "usage: npdraw COMMAND [--help] [flags]",
        "       npdraw --version",
        "",
        "NP-DRAW, the image model that draws part by part.",
        "",
        *(f"  {name:<11}{does}" for name, (_, does) in COMMANDS.items()),
        "",
        "examples:",
        "  npdraw train                                     the digits, in two minutes",
        "  npdraw train --preset emoji                      colour emoji",
        "  npdraw sample --model runs/digits/model --out samples",
        "  npdraw edit --model runs/digits/model --a sample:1 --keep 0:3,: --n 4 --out completed",
    ]
)


def main() -> None:
    name, rest = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("--help", [])
    if name in ("--help", "-h", "help"):
        print(HELP)
    elif name == "--version":
        print(f"npdraw {__version__}")
    elif name in COMMANDS:
        sys.argv = [f"npdraw {name}", *rest]
        runpy.run_module(COMMANDS[name][0], run_name="__main__")
    else:
        from npdraw_dist.config.load import nearest

        known = ", ".join(COMMANDS)
        print(
            f"error: unknown command {name!r}{nearest(name, list(COMMANDS))} (known: {known})",
            file=sys.stderr,
        )
        sys.exit(2)


if __name__ == "__main__":
    main()
