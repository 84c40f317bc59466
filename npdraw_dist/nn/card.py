"""The card of a model, README.md in its folder and on the hub."""

import json
from collections.abc import Mapping
from typing import Any

from npdraw_dist import __version__
from npdraw_dist.config.registry import KINDS
from npdraw_dist.config.spec import BaselineSpec, ModelSpec

SAMPLES_FILE = "samples.png"
# Keys of the results that are not rows of the table.
PROTOCOL = ("split", "n", "k", "protocol")
UNITS = {"nll_iwae": "nats", "elbo": "nats", "nll_iwae_se": "nats", "elbo_se": "nats"}
HEADER = """---
library_name: npdraw_dist
license: apache-2.0
pipeline_tag: unconditional-image-generation
tags:
- image-generation
- np-draw
- model_hub_mixin
---"""
BIBTEX = """@inproceedings{zeng2021npdraw,
  title     = {{NP-DRAW: A Non-Parametric Structured Latent Variable Model for Image Generation}},
  author    = {Zeng, Xiaohui and Urtasun, Raquel and Zemel, Richard and Fidler, Sanja and Liao, Renjie},
  booktitle = {Conference on Uncertainty in Artificial Intelligence (UAI)},
  year      = {2021},
  note      = {arXiv:2106.13435}
}"""


def card_text(
    spec: ModelSpec | BaselineSpec,
    parameters: int,
    results: Mapping[str, Any] | None,
    repo_id: str | None,
    samples: bool,
) -> str:
    """Markdown with the hub's metadata.

    results: as config.json states them (`hub.config_of`). repo_id: what the snippet loads. samples: whether
    SAMPLES_FILE lies beside the card.
    """
    channels, height, width = spec.image_shape
    images = f"{height}x{width} {'colour' if channels == 3 else 'grey'} images"
    source = "" if spec.data is None else f" of `{spec.data.source}`"
    sections = [
        HEADER,
        f"# {KINDS[spec.kind].title} of {images}{source}",
        f"![samples]({SAMPLES_FILE})" if samples else "",
        _model(spec, parameters),
        "## Numbers\n\n" + _numbers(results),
        "## Data\n\n" + _data(spec),
        "## Use\n\n" + _snippet(spec, repo_id),
        "## Limits\n\n" + _limits(spec),
        "## Licence\n\nThe code and these weights: Apache-2.0. The training data have their own.",
        f"## Citation\n\n```bibtex\n{BIBTEX}\n```",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _model(spec: ModelSpec | BaselineSpec, parameters: int) -> str:
    facts = [f"{parameters:,} parameters", f"likelihood {spec.likelihood}", f"binarize {spec.binarize}"]
    if isinstance(spec, ModelSpec):
        grid = spec.grid
        facts += [
            f"{spec.parts} parts of {spec.patch}x{spec.patch} pixels",
            f"{grid.rows}x{grid.columns} places",
            f"{spec.steps} steps in order {spec.order}",
        ]
        what = "An image is drawn part by part: whether, where and what, from a bank of real image patches."
    else:
        what = "A baseline, trained as NP-DRAW is."
    return f"{what} {'; '.join(facts)}. Saved by npdraw_dist {__version__}."


def _numbers(results: Mapping[str, Any] | None) -> str:
    if results is None:
        return "Not measured. `npdraw evaluate --model DIR --data.source SOURCE` measures them."
    rows = [
        f"| `{name}` | {value:,.4f} {UNITS.get(name, '')}".rstrip() + " |"
        for name, value in results.items()
        if name not in PROTOCOL and isinstance(value, int | float)
    ]
    how = f"{results['n']:,} images of the split `{results['split']}`, {results['k']} importance samples."
    return "\n".join(
        [f"{how} {results.get('protocol', '')}".rstrip(), "", "| metric | value |", "|---|---|", *rows]
    )


def _data(spec: ModelSpec | BaselineSpec) -> str:
    if spec.data is None:
        return "Not stated."
    data = spec.data
    told = (
        f"Source `{data.source}`; {data.valid_fraction:g} of it for validation, {data.test_fraction:g} for "
        f"the test split unless it has one of its own; seed of the splits {data.seed}."
    )
    return told if data.inputs is None else f"{told} Digest of the files: `{data.inputs}`."


def _snippet(spec: ModelSpec | BaselineSpec, repo_id: str | None) -> str:
    lines = [
        "import npdraw_dist",
        "",
        f"model = npdraw_dist.load({json.dumps(repo_id or 'path/of/this/folder')})",
        "images = model.sample(16, seed=0)  # (16, C, H, W) in [0, 1]",
    ]
    if isinstance(spec, ModelSpec):
        lines += ["again = model.reconstruct(images)", "top = model.complete(images, keep='0:2,:', seed=0)"]
    return "```python\n" + "\n".join(lines) + "\n```"


def _limits(spec: ModelSpec | BaselineSpec) -> str:
    channels, height, width = spec.image_shape
    told = [f"It takes and draws {channels}x{height}x{width} images that look like its training data."]
    if spec.binarize != "none":
        told.append("It knows pixels that are 0 or 1; greys of a picture are thresholded at 0.5.")
    if isinstance(spec, ModelSpec):
        told.append("It draws with the parts of its bank, which are patches of training images.")
    told.append("Nobody has tested it for decisions about people.")
    return " ".join(told)
