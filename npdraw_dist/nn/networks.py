"""The networks of an `NPDraw`, as its spec names them."""

from npdraw_dist.config.spec import ModelSpec
from npdraw_dist.core.orders import ORDERS, Free
from npdraw_dist.nn.canvas_prior import CanvasPrior
from npdraw_dist.nn.decoder import Decoder
from npdraw_dist.nn.drawing import AlignedDrawing, Drawing, FreeDrawing
from npdraw_dist.nn.flat_posterior import FlatPosterior, PlacedDrawing
from npdraw_dist.nn.likelihoods import CanvasStart
from npdraw_dist.nn.posterior import Posterior
from npdraw_dist.nn.prior import Prior, StepPrior
from npdraw_dist.nn.strided_decoder import StridedDecoder


def make_prior(spec: ModelSpec) -> StepPrior:
    return CanvasPrior(spec) if spec.prior.stem == "strided" else Prior(spec)


def make_posterior(spec: ModelSpec) -> Posterior | FlatPosterior:
    return FlatPosterior(spec) if spec.posterior == "flat" else Posterior(spec)


def make_drawing(spec: ModelSpec) -> Drawing:
    order = ORDERS[spec.order]
    if isinstance(order, Free):
        return FreeDrawing(order, spec.grid, spec.steps)
    return AlignedDrawing() if spec.where_given else PlacedDrawing()


def make_decoder(spec: ModelSpec, start: CanvasStart) -> Decoder | StridedDecoder:
    """start: what the likelihood's parameters are made of at first (`Likelihood.canvas_start`)."""
    sizes, background = (spec.decoder_width, spec.decoder_depth, spec.downscale), spec.grid.background
    if spec.decoder == "strided":
        outputs, channels = start.weight.shape
        return StridedDecoder(channels, outputs, *sizes, background)
    return Decoder(start, *sizes, background, spec.dropout)
