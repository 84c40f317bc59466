"""Drawings of a model, with their canvases and images, which can be saved or shown in a notebook.

Shapes: B drawings, T steps, C channels, P patch side, h x w canvas, H x W image.
"""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from npdraw_dist.core.images import inline, png, tiled, to_pil
from npdraw_dist.core.noise import Noise
from npdraw_dist.core.pages import save_samples
from npdraw_dist.core.parts import PartSequence
from npdraw_dist.nn import editing
from npdraw_dist.nn.appearance import Donor
from npdraw_dist.nn.generative import seeded
from npdraw_dist.nn.networks import Networks
from npdraw_dist.system.errors import UserError

SHOWN = 16  # largest number of drawings that a notebook shows
COLUMNS, ENLARGED = 8, 2  # in the notebook's PNG: drawings per row, enlargement factor


@dataclass(frozen=True)
class Drawings:
    """B drawings, and the images that a model decodes from them.

    z: steps (B, T). canvas: (B, C, h, w), pixels in [0, 1]. u: (B, ...), the latent for details that parts
    cannot express (`nn.appearance`); None if the model has no such latent, or if its value is unknown.
    model: the model whose parts z refers to, and which decodes the images.
    """

    z: PartSequence
    canvas: Tensor
    u: Tensor | None
    model: Networks = field(repr=False)

    @cached_property
    def images(self) -> Tensor:
        """The means of p(x|z, u), (B, C, H, W) in [0, 1], decoded on first access."""
        return self.model.decode(self.canvas, self.u)

    def pixels(self, *, generator: Noise = None, seed: int | None = None) -> Tensor:
        """Images drawn from p(x|z, u), (B, C, H, W). seed: used in place of a generator."""
        return self.model._draw_pixels(self.canvas, self.u, seeded(self.model.device, generator, seed))

    @property
    def parts(self) -> Tensor:
        """(B, T, C, P, P), the part of each step; zeros for a step that draws nothing."""
        return self.model.bank_parts[self.z.what] * self.z.whether[..., None, None, None]

    def __len__(self) -> int:
        return len(self.z)

    def __getitem__(self, index: Any) -> "Drawings":
        """Returns the drawings at `index` as a batch. index: a number, a slice or an int64 tensor (n,)."""
        if isinstance(index, int | np.integer) or (isinstance(index, Tensor) and index.ndim == 0):
            index = int(index)
            count = len(self)
            if not -count <= index < count:
                raise IndexError(f"there is no drawing {index}; there are {count}")
            index = slice(index % count, index % count + 1)
        u = None if self.u is None else self.u[index]
        found = Drawings(self.z[index], self.canvas[index], u, self.model)
        if "images" in vars(self):
            vars(found)["images"] = self.images[index]
        return found

    def repeated(self, n: int) -> "Drawings":
        """A batch of n copies of the first drawing."""
        return self[torch.zeros(n, dtype=torch.int64, device=self.canvas.device)]

    @torch.no_grad()
    def towards(self, other: "Drawings") -> "Drawings":
        """The N drawings on the way to `other`, each with one more place from it (`editing.interpolate`).

        N = 1 if both are equal. u changes in equal steps; the mean of p(u|canvas) replaces an unknown u.
        Raises ValueError unless both are one drawing each.
        """
        model, spec = self.model, self.model.spec
        z = editing.interpolate(self.z, other.z, spec.grid.places, spec.order)
        canvas = model.render(z)
        own, last = (model.mean_appearance(one.canvas) if one.u is None else one.u for one in (self, other))
        if own is None or last is None:
            return Drawings(z, canvas, None, model)
        way = torch.linspace(0, 1, len(canvas), device=canvas.device).view(-1, *(1 for _ in own.shape[1:]))
        return Drawings(z, canvas, torch.lerp(own, last, way), model)

    def to_pil(self) -> list[Image.Image]:
        """The B images as PIL images."""
        return to_pil(self.images)

    def numpy(self) -> NDArray[Any]:
        """The images as an array (B, C, H, W), floats in [0, 1]."""
        return self.images.cpu().numpy()

    def save(self, path: str | Path) -> None:
        """Writes the drawings to a file, whose content depends on the suffix of its name.

        .gif: an animation of the first 8 drawings, part by part. .png: canvas and image of each drawing.
        .npz: arrays `images`, `canvas`, `whether`, `where`, `what`, and `appearance` if u is known. Raises
        UserError on another suffix, or if the file cannot be written.
        """
        file = Path(path)
        if file.suffix not in (".gif", ".png", ".npz"):
            raise UserError(f"{file} is no file of a drawing; name it .gif, .png or .npz")
        try:
            if file.suffix == ".gif":
                file.write_bytes(self.model.trace(self.z, self.u).gif())
            elif file.suffix == ".png":
                save_samples(file, self.images.cpu(), self.canvas.cpu())
            else:
                arrays = {"images": self.images, "canvas": self.canvas, **vars(self.z)}
                if self.u is not None:
                    arrays["appearance"] = self.u
                np.savez_compressed(file, **{name: value.cpu().numpy() for name, value in arrays.items()})
        except OSError as error:
            raise UserError(f"cannot write {file}: {error.strerror}") from None

    def _repr_html_(self) -> str:
        """Shows the canvas and image of the first 16 drawings in a notebook."""
        rows = zip(self.canvas[:SHOWN], self.images[:SHOWN], self.z.whether.sum(1).tolist(), strict=False)
        shown = "".join(
            f'<div style="display: inline-block; margin: 4px">{inline(canvas, title="canvas")}'
            f"{inline(image, title='image')}<br>{parts} parts</div>"
            for canvas, image, parts in rows
        )
        more = f"<div>and {len(self) - SHOWN} more</div>" if len(self) > SHOWN else ""
        return f"<div>{shown}</div>{more}"

    def _repr_png_(self) -> bytes:
        """The picture for viewers without HTML, with each canvas above its image and 8 drawings per row."""
        images = self.images[:SHOWN]
        canvas = F.interpolate(self.canvas[:SHOWN], images.shape[-2:])
        pairs = F.pad(torch.cat([canvas, images], 2), (1, 1, 1, 4), value=0.5)
        return png(tiled(pairs, min(COLUMNS, len(pairs))), ENLARGED)


@torch.no_grad()
def redrawn(z: PartSequence, *donors: Drawings, own: Tensor | None = None) -> Drawings:
    """Renders z (B, T), which was edited from `donors`, and keeps their u where the canvas is unchanged.

    donors: B drawings each, of one model; u comes from the first donor with the same canvas. own: bool
    (B, 1, h, w); where it is False, the first donor is considered last.
    """
    model = donors[0].model
    canvas = model.render(z)
    order = [Donor(x.u, x.canvas) for x in donors]
    if own is not None:
        order = [order[0]._replace(own=own), *order[1:], order[0]]
    u = None if model.appearance is None else model.appearance.joined(canvas, order)
    return Drawings(z, canvas, u, model)
