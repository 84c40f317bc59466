"""The model class that users call, with methods that take and return images or drawings.

Images are of any type that `core.images.to_batch` takes; `nn.editing` describes how to specify places.
Shapes: B drawings, N drawings of an interpolation, T steps, L places, K parts, C channels, h x w canvas,
H x W image.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack, overload

import numpy as np
import torch
from torch import Tensor

from npdraw_dist.config.networks import VAEConfig
from npdraw_dist.core.images import to_canvas
from npdraw_dist.core.noise import Noise
from npdraw_dist.core.parts import PartBank, PartSequence
from npdraw_dist.core.vocabulary import Classes, Condition, one_each, plain
from npdraw_dist.nn import editing
from npdraw_dist.nn.completion import Completer, Effort, HowToComplete, evidence_of
from npdraw_dist.nn.drawings import Drawings, redrawn
from npdraw_dist.nn.editing import mask_of, place_of
from npdraw_dist.nn.generative import SampleTrace, at_centres, seeded
from npdraw_dist.nn.hard_draws import hard_loss
from npdraw_dist.nn.networks import Networks
from npdraw_dist.nn.objective import PriorObjective, VAEObjective
from npdraw_dist.nn.prior import GivenPrior, StepPrior, dropped
from npdraw_dist.nn.steps import log_prob_steps
from npdraw_dist.system.errors import UserError, require_positive
from npdraw_dist.system.model_files import first_fact

BANK = "bank_parts"  # the name of the buffer with the parts, in every network that has such a buffer


class NPDraw(Networks):
    """The generative model NP-DRAW (Zeng et al., UAI 2021): it draws, reconstructs, completes and edits.

    The bank of a new model has only blank parts; call `set_bank`, or load weights. `save_pretrained` and
    `from_pretrained` save and load the model without pickle.
    """

    title = "NP-DRAW"

    @classmethod
    def prior_objective(cls, prior: StepPrior, learning_rate: float) -> PriorObjective:
        """The loss that stage `prior` minimises to train `prior`."""
        return PriorObjective(prior, learning_rate)

    def objective(self, config: VAEConfig) -> VAEObjective:
        return VAEObjective(self, config)

    def forward(
        self,
        images: Any,
        condition: Condition | Sequence[Condition] | None = None,
        *,
        draws: int = 2,
        generator: Noise = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The negative ELBO in nats and its terms, as scalar means over the images, for a training loop.

        Each image has `draws` hard draws of q(z|x), which give the loss an unbiased gradient
        (`nn.hard_draws`); a single draw does not train q(z|x). condition: one for all images, or one for
        each; some are dropped at random. Raises UserError on images or conditions that do not fit.
        """
        require_positive("draws", draws)
        x, tokens = self.as_input(images), None
        if condition is not None:
            if isinstance(self.prior, GivenPrior):
                raise UserError("the model already has a condition; call a model without one")
            each = self.vocabulary.rows(one_each(condition, len(x)))
            tokens = dropped(each.to(x.device), generator)
        with torch.set_grad_enabled(torch.is_grad_enabled() and draws > 1):
            q = self.infer(x)
        loss, terms = hard_loss(self, x, q, draws, generator, tokens)
        return loss.mean(), {name: value.detach().mean() for name, value in terms.items()}

    @torch.no_grad()
    def as_drawings(self, x: Any, *, u: Tensor | None = None) -> Drawings:
        """Images, drawings z (B, T) or `Drawings` -> `Drawings`.

        Images get their most likely z and u. Drawings z get `u` (B, ...); None stands for the mean of
        p(u|canvas). Raises UserError on images that `as_input` rejects, ValueError on drawings of another
        model.
        """
        if isinstance(x, Drawings):
            if not torch.equal(x.model.bank_parts.to(self.device), self.bank_parts):
                raise ValueError("the model has other parts than the drawings; give their images or z")
            self.checked(x.z)
            if x.model is self and x.canvas.device == self.device:
                return x
            u = None if x.u is None else x.u.to(self.device)
            return Drawings(x.z.to(self.device), x.canvas.to(self.device), u, self)
        if isinstance(x, PartSequence):
            z = self.checked(x).to(self.device)
            return Drawings(z, self.render(z), u, self)
        x = self.as_input(x)
        z = self.encode(x)
        canvas = self.render(z)
        found = self.infer_appearance(x, canvas)
        return Drawings(z, canvas, None if found is None else found.q.mean, self)

    @torch.no_grad()
    def draw(
        self,
        n: int,
        condition: Condition | Sequence[Condition] | None = None,
        seed: int | None = None,
        *,
        generator: Noise = None,
        temperature: float | None = None,
        top_k: int | None = None,
        guidance: float | None = None,
    ) -> Drawings:
        """Draws n drawings: z ~ p(z) (`StepPrior.sample`) and u ~ p(u|canvas).

        condition: if given, z ~ p(z|condition); one condition for all drawings or a sequence of n. `given`
        describes condition and guidance; None means `spec.guidance`. seed: used in place of a generator.
        temperature: that of the prior; None means `spec.temperature`. Raises UserError on a wrong number or
        an unknown condition.
        """
        require_positive("n", n)
        if condition is not None:
            given = self.given(plain(condition, n), self.guidance_of(guidance))
            return given.draw(n, None, seed, generator=generator, temperature=temperature, top_k=top_k)
        _require_no_guidance(guidance)
        generator = seeded(self.device, generator, seed)
        heat = self.temperature_of(temperature)
        z = self.sample_prior(n, generator=generator, temperature=heat, top_k=top_k)
        canvas = self.render(z)
        u = None if self.appearance is None else self.appearance.prior(canvas).sample(generator)
        return Drawings(z, canvas, u, self)

    def sample(
        self,
        n: int,
        *,
        condition: Condition | Sequence[Condition] | None = None,
        generator: Noise = None,
        seed: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        guidance: float | None = None,
        pixels: bool = False,
    ) -> Tensor:
        """The images of `draw` with the same arguments, (n, C, H, W): means of p(x|z, u).

        pixels: returns draws of p(x|z, u) in place of the means.
        """
        generator = seeded(self.device, generator, seed)
        how: dict[str, Any] = {"generator": generator, "temperature": temperature, "top_k": top_k}
        drawn = self.draw(n, condition, guidance=guidance, **how)
        return drawn.pixels(generator=generator) if pixels else drawn.images

    def sample_trace(
        self, n: int, *, generator: Noise = None, temperature: float | None = None
    ) -> SampleTrace:
        drawn = self.draw(n, generator=generator, temperature=temperature)
        return self.trace(drawn.z, drawn.u)

    def with_bank(self, bank: PartBank) -> "NPDraw":
        """Returns a copy of this model, in eval mode, with another bank (of any size K). Nothing is trained.

        The copy's log-probabilities are exact: the probabilities of *what* sum to 1 over the new parts.
        Raises UserError if the prior's table is not `pixels`, the parts have another shape, or the model is
        conditioned.
        """
        if not isinstance(bank, PartBank):
            raise UserError(f"the bank is a {type(bank).__name__}; give a PartBank")
        if (table := self.spec.prior.table) != "pixels":
            raise UserError(
                f"the model has free weights for its parts (prior.table {table}); train one with "
                "--prior.table pixels"
            )
        shape, own = tuple(bank.parts.shape[1:]), tuple(self.bank_parts.shape[1:])
        if shape != own:
            raise UserError(f"the bank has parts of {shape}, and the model draws parts of {own}")
        parts = bank.parts.to(self.device)
        state = {n: parts if n.endswith(BANK) else value for n, value in self.state_dict().items()}
        with torch.random.fork_rng(devices=[]):
            model = self.untrained(self.spec.model_copy(update={"parts": len(bank)})).to(self.device)
        model.load_state_dict(state)
        return model.eval()

    @torch.no_grad()
    def surprise(self, images: Any) -> Tensor:
        """The negative log-probability of each place of the images under the prior, nats (B, rows, columns).

        The value of a place is -log p of its step in the image's most likely z, given the earlier steps. In
        order aligned every place has a step, even if the step draws nothing; in the other orders the value of
        a place without a part is 0.
        images: as `as_drawings` takes them.
        """
        z = self.as_drawings(images).z
        self.require_conditions(len(z))
        nats = -log_prob_steps(self.prior(z).float32(), z)
        if not self.spec.where_given:
            nats = nats * z.whether
        grid = self.spec.grid
        found = nats.new_zeros(len(z), grid.places).scatter_add_(1, z.where, nats)
        return found.view(-1, grid.rows, grid.columns)

    def reconstruct(self, images: Any) -> Tensor:
        """Images of any type (`as_input`) -> the mean images (B, C, H, W) of their most likely z and u."""
        return self.as_drawings(self.as_input(images)).images

    def interpolate(self, a: Any, b: Any) -> Tensor:
        """The mean images (N, C, H, W) on the way from a to b (`Drawings.towards`).

        a, b: one image or drawing each, as `as_drawings` takes them. Raises ValueError on more than one.
        """
        return self.as_drawings(a).towards(self.as_drawings(b)).images

    @overload
    def complete(
        self, x: PartSequence, keep: Any, generator: Noise = None, **how: Unpack[HowToComplete]
    ) -> PartSequence: ...

    @overload
    def complete(
        self, x: Any, keep: Any, generator: Noise = None, **how: Unpack[HowToComplete]
    ) -> Drawings: ...

    @torch.no_grad()
    def complete(
        self,
        x: Any,
        keep: Any,
        generator: Noise = None,
        *,
        seed: int | None = None,
        temperature: float | None = None,
        effort: Effort | None = None,
        condition: Condition | Sequence[Condition] | None = None,
        guidance: float | None = None,
        sketch: Any = None,
    ) -> PartSequence | Drawings:
        """Redraws all places except the kept ones, approximately by z' ~ p(z' | kept places).

        x: drawings z (B, T), for which the result is z' (B, T); or images or `Drawings`, for which it is
        `Drawings` with the u of x. keep: places as `nn.editing.mask_of` takes them; at a kept place z' has
        the same part as z, or no part if z has none. effort: how close the draw is to the exact distribution
        (`nn.completion`). temperature: divides all logits of the prior; None means `spec.temperature`. seed:
        used in place of a generator. condition, guidance: as `given` takes them; a sequence of conditions
        has length B, and guidance None means `spec.guidance`.

        sketch: places that were drawn by hand. Unless kept, these places get parts that resemble their ink in
        x and may extend over blank pixels (`nn.completion.evidence_of`). With a sketch,
        `effort.visits` and `effort.candidates` are ignored.

        Raises UserError on a sketch in a free order, ValueError on shapes, numbers or places that do not fit
        this model, such as more than T steps.
        """
        generator = seeded(self.device, generator, seed)
        given = self.checked(x).to(self.device) if isinstance(x, PartSequence) else self.as_drawings(x)
        z = given if isinstance(given, PartSequence) else given.z
        mask = mask_of(keep, self.spec.grid, len(z), "keep").to(z.where.device).expand(len(z), -1)
        evidence = None
        if sketch is not None:
            if not self.spec.aligned:
                raise UserError(f"a sketch needs order aligned; the model draws in {self.spec.order}")
            by_hand = mask_of(sketch, self.spec.grid, len(z), "sketch").to(mask) & ~mask
            drawn_on = isinstance(x, PartSequence | Drawings)
            canvas = self.render(z) if drawn_on else to_canvas(self.as_input(x), self.spec.downscale)
            evidence = evidence_of(self.spec.grid, self.bank_parts, canvas, by_hand)
        each: Sequence[Condition | None]
        if condition is None:
            _require_no_guidance(guidance)
            if self.conditions > 1:
                raise UserError(
                    f"the model is given {self.conditions} conditions; give them to `complete`, not `given`"
                )
            each = [None] * len(z)
        else:
            each = one_each(condition, len(z))
        temperature, parts, order = self.temperature_of(temperature), [], list[int]()
        for one in dict.fromkeys(each):  # images with the same condition share a batch
            rows = [row for row, other in enumerate(each) if other == one]
            prior = self.prior if one is None else self.given(one, self.guidance_of(guidance)).prior
            completer = Completer(prior, self.bank_parts, temperature, effort or Effort())
            index = torch.tensor(rows, device=z.where.device)
            seen = None if evidence is None else evidence[index]
            parts.append(completer(z[index], mask[index], generator, seen))
            order += rows
        done = PartSequence.cat(parts)[torch.tensor(order, device=z.where.device).argsort()]
        return done if isinstance(given, PartSequence) else redrawn(done, given)

    @torch.no_grad()
    def classify(self, images: Any, *, k: int = 10, seed: int = 0) -> Tensor:
        """Assigns each image the class of highest log p(x|class), estimated by k draws of q; int64 (B,).

        A class is returned as the number that conditions use, which is its name if all names are numbers, or
        else its position. All classes have the same prior probability. Raises UserError if the model takes no
        class, or k is less than 1.
        """
        require_positive("k", k)
        if not isinstance(self.vocabulary, Classes):
            raise UserError("the model knows no classes; train one with --prior.condition class")
        x, generator = self.as_input(images), seeded(self.device, None, seed)
        found = [self._class_of(some, k, generator) for some in x.split(max(self.rows_at_once // k, 1))]
        return torch.tensor(self.vocabulary.labels, device=self.device)[torch.cat(found)]

    def _class_of(self, x: Tensor, k: int, generator: Noise) -> Tensor:
        """See `classify`. Scores the same draws for all classes, since only log p(z|class) differs."""
        q = self.infer(x).tile(k)
        z = self.sample_posterior(q, generator)
        scored = self.reconstruct_from(self.render(z), x.repeat(k, 1, 1, 1), generator)
        shared = scored.log_p - scored.log_ratio - self.layout.log_prob(q, z)
        classes = torch.arange(1, 1 + len(self.vocabulary.entries), device=x.device)
        bounds = [shared + self.plain_prior.log_prob(z, number.view(1, 1)) for number in classes]
        return torch.stack(bounds).view(len(classes), k, -1).logsumexp(1).argmax(0)

    def log_weights(self, x: Any, k: int = 50, *, generator: Noise = None) -> Tensor:
        if self.conditions > 1:
            raise UserError(f"the model is given {self.conditions} conditions; log_weights takes one")
        return super().log_weights(x, k, generator=generator)

    @torch.no_grad()
    def compose(self, a: Any, b: Any, places: Any) -> Drawings:
        """Replaces the parts of a at `places` by those of b (`editing.compose`).

        a, b: images or drawings, as `as_drawings` takes them, B of each, or one for all of the other.
        places: as `nn.editing.mask_of` takes them. A map u is composed like the parts, and blank cells at
        `places` also come from b. A vector u for the whole image comes from a. Raises ValueError if the
        numbers of drawings do not match.
        """
        first, second = self.as_drawings(a), self.as_drawings(b)
        if len(first) != len(second) and 1 in (len(first), len(second)):
            many = max(len(first), len(second))
            first, second = (x if len(x) == many else x.repeated(many) for x in (first, second))
        mask = mask_of(places, self.spec.grid, len(first)).to(self.device)
        z = editing.compose(first.z, second.z, mask, self.spec.order)
        patch = self.spec.patch
        elsewhere = (~mask).float().view(-1, self.grid.places, 1, 1, 1).expand(-1, -1, -1, patch, patch)
        return redrawn(z, first, second, own=self.grid.fold_sum(elsewhere) > 0)

    @torch.no_grad()
    def swapped(self, a: Tensor, b: Tensor, inside: Tensor) -> Tensor:
        centres = self.grid.centres(self.spec.downscale).to(inside.device)
        return self.compose(a, b, at_centres(inside, centres)).images

    @torch.no_grad()
    def edit(
        self,
        x: Any,
        *,
        remove: Any = None,
        move: Mapping[Any, Any] | None = None,
        swap: Mapping[Any, Any] | None = None,
        put: Mapping[Any, int] | None = None,
    ) -> Drawings:
        """Edits the drawings of x, in this order: remove, move, swap, put (`nn.editing`).

        x: images or drawings, as `as_drawings` takes them. remove: places to empty, as `nn.editing.mask_of`
        takes them. move: {from: to}. swap: {one: other}. put: {place: part}, parts 0 to K - 1. A place is
        given as its number or (row, column). The latent u, for details that parts cannot express, comes from
        x (`redrawn`). Raises UserError on a place or part that the model does not have.
        """
        before, grid, order = self.as_drawings(x), self.spec.grid, self.spec.order
        z = before.z
        if remove is not None:
            z = editing.remove(z, mask_of(remove, grid, len(z), "remove").to(self.device), order)
        for source, target in (move or {}).items():
            z = editing.move(z, place_of(source, grid), place_of(target, grid), order)
        for one, other in (swap or {}).items():
            z = editing.swap(z, place_of(one, grid), place_of(other, grid), order)
        for place, part in (put or {}).items():
            if not isinstance(part, int | np.integer) or not 0 <= part < self.spec.parts:
                raise UserError(f"there is no part {part}; the bank has parts 0 to {self.spec.parts - 1}")
            z = editing.put(z, place_of(place, grid), int(part), order)
        return redrawn(z, before)


def load(
    name: str | Path, *, device: str | torch.device | None = None, dtype: torch.dtype | None = None
) -> NPDraw:
    """Loads a trained model in eval mode, on the CPU and in float32 unless `device` and `dtype` are given.

    name: a model folder or a run folder; the URI of either (s3://, gs://, ...); the name of a model that
    comes with the package, such as `emoji` (`npdraw models` lists them); or an id of the Hugging Face hub,
    `org/name` or `org/name@revision`. dtype: that of the weights, torch.float32 or torch.float64. Raises
    UserError if there is no NP-DRAW model that this version can read, or on another dtype or a device that is
    not there.
    """
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise UserError(f"dtype is {dtype!r}; give torch.float32 or torch.float64")
    model = NPDraw.from_pretrained(name)
    try:
        return model.to(device=device, dtype=dtype)
    except (RuntimeError, AssertionError) as error:  # torch's own
        raise UserError(f"device {device} cannot be used: {first_fact(error)}") from None


def _require_no_guidance(guidance: float | None) -> None:
    """Raises UserError if there is a guidance, because without a condition it has no effect."""
    if guidance is not None:
        raise UserError(f"guidance {guidance} needs a condition; give both, here or to `given`")
