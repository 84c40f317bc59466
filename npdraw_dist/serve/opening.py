"""A model folder as an `Engine`, with what its run knows of it."""

from pathlib import PurePosixPath

import torch

from npdraw_dist.nn.npdraw import NPDraw
from npdraw_dist.pipeline.held_out import HeldOutImages
from npdraw_dist.pipeline.model_run import find_run
from npdraw_dist.pipeline.models import load_npdraw
from npdraw_dist.serve.engine import MIN_GAIN, Engine, Origin
from npdraw_dist.training.device import refuse_tf32


def open_engine(folder: str, device: torch.device | str = "cpu", model: NPDraw | None = None) -> Engine:
    """The engine of a model folder or URI; model: that which lies there, if it is loaded already.

    Raises UserError if there is no model of parts.
    """
    model = (model or load_npdraw(folder)).to(device)
    refuse_tf32(model.device)
    run = find_run(folder)
    origin = Origin(
        name=None if run is None else PurePosixPath(run[0]).name or None,
        min_gain=MIN_GAIN if run is None else run[1].get("parse", {}).get("min_gain", MIN_GAIN),
        images=HeldOutImages(folder, model.spec, "serve", "valid"),
    )
    return Engine(model, HeldOutImages(folder, model.spec, "serve"), origin)
