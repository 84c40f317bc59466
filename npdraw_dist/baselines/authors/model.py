"""Kind `authors`: NP-DRAW with the networks and the training of the authors' released code."""

from torch import nn

from npdraw_dist.baselines.authors.network import CanvasPrior, FlatPosterior, PlacedLayout, StridedDecoder
from npdraw_dist.baselines.authors.training import AuthorsObjective, AuthorsPriorObjective
from npdraw_dist.config.networks import VAEConfig
from npdraw_dist.config.spec import ModelSpec
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.parts import PartBank
from npdraw_dist.nn.likelihoods import CanvasStart
from npdraw_dist.nn.npdraw import NPDraw
from npdraw_dist.nn.prior import StepPrior


class AuthorsNPDraw(NPDraw):
    """`NPDraw` with the authors' networks and objectives."""

    title = "NP-DRAW by its authors"

    @classmethod
    def make_prior(cls, spec: ModelSpec) -> StepPrior:
        return CanvasPrior(spec)

    @classmethod
    def make_posterior(cls, spec: ModelSpec) -> FlatPosterior:
        return FlatPosterior(spec)

    @classmethod
    def make_layout(cls, spec: ModelSpec) -> PlacedLayout:
        return PlacedLayout()

    @classmethod
    def make_decoder(cls, spec: ModelSpec, start: CanvasStart) -> nn.Module:
        outputs, channels = start.weight.shape
        sizes = (spec.decoder_width, spec.decoder_depth, spec.downscale)
        return StridedDecoder(channels, outputs, *sizes, spec.grid.background)

    @classmethod
    def prior_objective(cls, prior: StepPrior, learning_rate: float) -> AuthorsPriorObjective:
        return AuthorsPriorObjective(prior, learning_rate)

    def objective(self, config: VAEConfig) -> AuthorsObjective:
        return AuthorsObjective(self, config)

    def with_bank(self, bank: PartBank) -> NPDraw:
        """Raises UserError: these networks have free weights for their parts."""
        raise UserError(
            "the model has free weights for its parts (the authors' model); train one with "
            "--prior.table pixels"
        )
