"""What people do with a trained NP-DRAW: images or drawings in, images or drawings out.

Images are of any kind that `core.any_image.to_batch` takes. What is drawn comes out as tensors, or as
`Drawings`: the sequence with its canvas and image. Places are named as in `core.regions`.
Shapes: B drawings, N of them on a way, T steps, L places, K parts, C channels, h x w canvas, H x W image.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from npdraw_dist.config.spec import ModelSpec
from npdraw_dist.core import editing
from npdraw_dist.core.any_image import inline, png, tiled, to_pil
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.parts import PartSequence
from npdraw_dist.core.regions import mask_of, place_of
from npdraw_dist.nn.completion import Completer, Effort
from npdraw_dist.nn.generative import GenerativeModel, seeded
from npdraw_dist.nn.prior import StepPrior

SHOWN = 16  # drawings of a batch on a page
COLUMNS, ENLARGED = 8, 2  # of them in a picture


@dataclass(frozen=True)
class Drawings:
    """B drawings and what the model makes of them.

    z: (B, T). canvas: (B, C, h, w). images: (B, C, H, W), means of p(x|z, u). All pixels are in [0, 1]. u:
    (B, ...), the latent of what parts cannot say; None if the model has none, or if it is not known.
    """

    z: PartSequence
    canvas: Tensor
    images: Tensor
    u: Tensor | None = None

    def __len__(self) -> int:
        return len(self.z)

    def __getitem__(self, index: int | slice | Tensor) -> "Drawings":
        """The drawings `index`, which are a batch also if it is one."""
        if isinstance(index, int):
            count = len(self)
            if not -count <= index < count:
                raise IndexError(f"drawing {index}; there are {count}")
            index = slice(index % count, index % count + 1)
        u = None if self.u is None else self.u[index]
        return Drawings(self.z[index], self.canvas[index], self.images[index], u)

    def to_pil(self) -> list[Image.Image]:
        """The B images."""
        return to_pil(self.images)

    def numpy(self) -> NDArray[Any]:
        """The images as an array (B, C, H, W), floats in [0, 1]."""
        array: NDArray[Any] = self.images.cpu().numpy()
        return array

    def _repr_html_(self) -> str:
        """Canvas and image of each drawing, for notebooks."""
        rows = zip(self.canvas[:SHOWN], self.images[:SHOWN], self.z.whether.sum(1).tolist(), strict=False)
        shown = "".join(
            f'<div style="display: inline-block; margin: 4px">{inline(canvas, title="canvas")}'
            f"{inline(image, title='image')}<br>{parts} parts</div>"
            for canvas, image, parts in rows
        )
        more = f"<div>and {len(self) - SHOWN} more</div>" if len(self) > SHOWN else ""
        return f"<div>{shown}</div>{more}"

    def _repr_png_(self) -> bytes:
        """The same for viewers that show no HTML: each canvas above its image, COLUMNS drawings a row."""
        images = self.images[:SHOWN]
        canvas = F.interpolate(self.canvas[:SHOWN], images.shape[-2:])
        pairs = F.pad(torch.cat([canvas, images], 2), (1, 1, 1, 4), value=0.5)
        return png(tiled(pairs, min(COLUMNS, len(pairs))), ENLARGED)


class Interface(GenerativeModel):
    """Reconstructs, completes, composes, edits and describes. `NPDraw` has the networks for it."""

    spec: ModelSpec
    bank_parts: Tensor
    prior: StepPrior

    @abstractmethod
    def encode(self, x: Any) -> PartSequence: ...

    @abstractmethod
    def render(self, z: PartSequence, steps: bool = False) -> Tensor: ...

    @abstractmethod
    def decode(self, canvas: Tensor, u: Tensor | None = None) -> Tensor: ...

    @abstractmethod
    def likeliest_appearance(self, x: Tensor, canvas: Tensor) -> Tensor | None: ...

    @abstractmethod
    def joined_appearance(
        self, canvas: Tensor, donors: Sequence[tuple[Tensor | None, Tensor]]
    ) -> Tensor | None: ...

    @abstractmethod
    def mean_appearance(self, canvas: Tensor) -> Tensor | None: ...

    @torch.no_grad()
    def drawings(self, x: Any) -> Drawings:
        """x: images, drawings z (B, T) or `Drawings` -> the latter.

        Those of images are their most likely z and u. Those of z have the mean of p(u|canvas). Raises
        UserError on images of another kind, size or range, and ValueError on drawings of another model.
        """
        if isinstance(x, Drawings):
            return x
        if isinstance(x, PartSequence):
            self._check(x)
            return self._decoded(x.to(self.device), None)
        x = self.as_input(x)
        z = self.encode(x)
        return self._decoded(z, self.likeliest_appearance(x, self.render(z)))

    def _check(self, z: PartSequence) -> None:
        spec = self.spec
        editing.check_ranges(z, spec.steps, spec.grid.places, spec.parts, spec.where_given)

    def _decoded(self, z: PartSequence, u: Tensor | None) -> Drawings:
        canvas = self.render(z)
        return Drawings(z, canvas, self.decode(canvas, u), u)

    def reconstruct(self, images: Any) -> Tensor:
        """Images of any kind -> the mean images (B, C, H, W) of their most likely z and u.

        Pictures (uint8, PIL) of a model that binarizes are first made 0 or 1, by x > 0.5; floats are taken as
        they are. Raises UserError on another kind, size or range.
        """
        return self.drawings(self.as_input(images)).images

    @torch.no_grad()
    def interpolate(self, a: Any, b: Any) -> Tensor:
        """From a to b in N mean images (N, C, H, W), of which each changes one place of the drawing.

        a, b: one image or drawing each, as `drawings` takes them. The first image is that of a, as
        `reconstruct` or `decode` gives it, and the last that of b; with equal drawings N is 1. The latent u
        goes from that of a to that of b in equal steps; that of a drawing is the mean of p(u|canvas). See
        `editing.interpolate`. Raises ValueError on other shapes.
        """
        first, last = self.drawings(a), self.drawings(b)
        between = editing.interpolate(first.z, last.z, self.spec.grid.places, self.spec.order)
        canvas = self.render(between)
        u_a, u_b = (self.mean_appearance(x.canvas) if x.u is None else x.u for x in (first, last))
        if u_a is None or u_b is None:
            return self.decode(canvas)
        way = torch.linspace(0, 1, len(canvas), device=canvas.device).view(-1, *(1 for _ in u_a.shape[1:]))
        return self.decode(canvas, torch.lerp(u_a, u_b, way))

    @overload
    def complete(
        self,
        x: PartSequence,
        keep: Any,
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
        effort: Effort | None = None,
        *,
        seed: int | None = None,
    ) -> PartSequence: ...

    @overload
    def complete(
        self,
        x: Any,
        keep: Any,
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
        effort: Effort | None = None,
        *,
        seed: int | None = None,
    ) -> Drawings: ...

    @torch.no_grad()
    def complete(
        self,
        x: Any,
        keep: Any,
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
        effort: Effort | None = None,
        *,
        seed: int | None = None,
    ) -> PartSequence | Drawings:
        """Draws all places anew but the kept ones, given these: a draw of about p(z' | kept places).

        x: a drawing z (B, T), then z' (B, T) is returned; or images or `Drawings`, then `Drawings` are, with
        the u of x. keep: (L,) or (B, L) bool, or as `core.regions.mask_of` takes it; there z' holds exactly
        what z holds, also nothing. The prior draws the other places by sequential Monte Carlo and then a
        Markov chain: exact in the limit of `effort`, and at once if no kept place of an aligned drawing comes
        after a free one (`nn.completion`). temperature divides all logits of the prior. seed: in place of a
        generator. Raises ValueError on shapes, numbers or places that do not fit this model, such as more
        steps than T.
        """
        generator = seeded(self.device, generator, seed)
        given = x if isinstance(x, PartSequence) else self.drawings(x)
        z = given if isinstance(given, PartSequence) else given.z
        completer = Completer(self.prior, self.bank_parts, temperature, effort or Effort())
        mask = mask_of(keep, self.spec.grid, len(z), "keep").to(z.where.device)
        done = completer(z, mask.expand(len(z), -1) if mask.ndim == 1 else mask, generator)
        return done if isinstance(given, PartSequence) else self._with_appearance(done, [given])

    @torch.no_grad()
    def compose(self, a: Any, b: Any, places: Any) -> Drawings:
        """a's drawings with b's parts, and no others, at `places` (`editing.compose`).

        a, b: images or drawings, as `drawings` takes them, B of each or one. places: those of b, as
        `core.regions.mask_of` takes them. u is that of a and of b, as their parts are. Raises ValueError if
        there are other numbers of a and b.
        """
        first, second = self.drawings(a), self.drawings(b)
        if len(first) != len(second) and 1 in (len(first), len(second)):
            many = max(len(first), len(second))
            index = torch.zeros(many, dtype=torch.int64, device=self.device)
            first, second = (x if len(x) == many else x[index] for x in (first, second))
        mask = mask_of(places, self.spec.grid, len(first)).to(self.device)
        z = editing.compose(first.z, second.z, mask, self.spec.order)
        return self._with_appearance(z, [first, second])

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
        """Drawings of x with edits, in this order: remove, move, swap, put (`core.editing`).

        x: images or drawings, as `drawings` takes them. remove: places to empty, as `core.regions.mask_of`
        takes them. move: {from: to}. swap: {one: other}. put: {place: part}, parts 0 to K - 1. A place is its
        number or (row, column). What parts cannot say stays that of x. Raises UserError on a place or part
        that the model does not have.
        """
        before, grid, order = self.drawings(x), self.spec.grid, self.spec.order
        z = before.z
        if remove is not None:
            z = editing.remove(z, mask_of(remove, grid, len(z), "remove").to(self.device), order)
        for source, target in (move or {}).items():
            z = editing.move(z, place_of(source, grid), place_of(target, grid), order)
        for one, other in (swap or {}).items():
            z = editing.swap(z, place_of(one, grid), place_of(other, grid), order)
        for place, part in (put or {}).items():
            if not 0 <= part < self.spec.parts:
                raise UserError(f"part {part}; the bank has 0 to {self.spec.parts - 1}")
            z = editing.put(z, place_of(place, grid), part, order)
        return self._with_appearance(z, [before])

    def _with_appearance(self, z: PartSequence, donors: Sequence[Drawings]) -> Drawings:
        """z (B, T), made of the B drawings of each donor, with their u."""
        canvas = self.render(z)
        joined = [
            self.joined_appearance(
                canvas[row : row + 1],
                [(None if x.u is None else x.u[row : row + 1], x.canvas[row : row + 1]) for x in donors],
            )
            for row in range(len(z))
        ]
        found = [u for u in joined if u is not None]
        u = torch.cat(found) if found else None
        return Drawings(z, canvas, self.decode(canvas, u), u)
