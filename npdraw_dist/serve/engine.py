"""What the API does, in plain Python on one model: no HTTP, no Ray.

Shapes: B batch, T steps, L places, C channels, H x W image.
"""

import base64
import math

import torch
from torch import Tensor

from npdraw_dist.core import editing
from npdraw_dist.core.parts import PartSequence
from npdraw_dist.data.uploads import read_picture
from npdraw_dist.measure.pictures import bank_sheet, png
from npdraw_dist.nn.npdraw import NPDraw
from npdraw_dist.pipeline.held_out import HeldOutImages
from npdraw_dist.pipeline.models import model_input
from npdraw_dist.pipeline.pictures import animate
from npdraw_dist.serve import schemas
from npdraw_dist.serve.schemas import Drawing, Encoded, Frame, Frames, Move, Put, Remove, Steps


class Engine:
    """Draws, edits and decodes with `model`. Raises ValueError on what its sizes do not allow."""

    def __init__(self, model: NPDraw, test_images: HeldOutImages | None = None) -> None:
        self.model, self.test_images = model, test_images
        self.spec, self.grid = model.spec, model.grid

    def facts(self) -> schemas.ModelFacts:
        spec, grid = self.spec, self.grid
        channels, height, width = spec.image_shape
        return schemas.ModelFacts(
            channels=channels,
            image_height=height,
            image_width=width,
            canvas_height=grid.height,
            canvas_width=grid.width,
            rows=grid.rows,
            columns=grid.columns,
            patch=grid.patch,
            stride=grid.stride,
            steps=spec.steps,
            parts=spec.parts,
            order=spec.order,
            test_images=0 if self.test_images is None else len(self.test_images),
        )

    def bank(self) -> schemas.Bank:
        bank = self.model.bank
        columns = math.ceil(math.sqrt(len(bank)))
        return schemas.Bank(
            size=len(bank), patch=bank.patch, columns=columns, sheet=_text(bank_sheet(bank, columns))
        )

    def z_of(self, steps: Steps) -> PartSequence:
        """(1, T) of a request."""
        if not len(steps.whether) == len(steps.where) == len(steps.what):
            raise ValueError("whether, where and what are of one length")
        z = PartSequence(
            torch.tensor([steps.whether], dtype=torch.bool),
            torch.tensor([steps.where], dtype=torch.int64),
            torch.tensor([steps.what], dtype=torch.int64),
        )
        editing.check_ranges(z, self.spec.steps, self.grid.places, self.spec.parts, self.spec.order)
        return z.to(self.model.device)

    def sample(self, seed: int, temperature: float) -> PartSequence:
        """(1, T), drawn from the prior."""
        generator = torch.Generator(self.model.device).manual_seed(seed)
        return self.model.sample_prior(1, generator, temperature)

    def upload(self, content: bytes, invert: bool) -> Tensor:
        """uint8 (1, C, H, W) of a picture of any size. Raises NotAPicture, a ValueError."""
        return read_picture(content, self.spec.image_shape, invert)

    def test_image(self, index: int) -> Tensor:
        """uint8 (1, C, H, W). Raises IndexError."""
        if self.test_images is None:
            raise IndexError("there are no test images: the model lies apart from its run")
        return self.test_images[index]

    def encode(self, images: Tensor) -> PartSequence:
        """uint8 (1, C, H, W) -> the most likely z."""
        return self.model.encode(model_input(self.model, images))

    def original(self, images: Tensor, drawing: Drawing) -> Encoded:
        return Encoded(**drawing.model_dump(), original=_text(png(model_input(self.model, images)[0])))

    def compose(self, request: schemas.ComposeRequest) -> tuple[PartSequence, int]:
        """B's parts at the places, on A; and how many of A's parts gave way."""
        z_a, z_b = self.z_of(request.a), self.z_of(request.b)
        mask = self._mask(request.places)
        z = editing.compose(z_a, z_b, mask, self.spec.order)
        wanted = editing.count_drawn(z_a, ~mask) + editing.count_drawn(z_b, mask)
        return z, int(wanted - z.whether.sum())

    def edit(self, request: schemas.EditRequest) -> tuple[PartSequence, int]:
        """One edit; and how many parts gave way to it."""
        z, edit, order = self.z_of(request.z), request.edit, self.spec.order
        if isinstance(edit, Remove):
            return editing.remove(z, self._mask(edit.places), order), 0
        if isinstance(edit, Move):
            return editing.move(z, self._place(edit.source), self._place(edit.target), order), 0
        if not isinstance(edit, Put):
            return editing.swap(z, self._place(edit.first), self._place(edit.second), order), 0
        if edit.part >= self.spec.parts:
            raise ValueError(f"part {edit.part}; 0 to {self.spec.parts - 1} are there")
        others = editing.count_drawn(z, ~self._mask([edit.place]))
        edited = editing.put(z, edit.place, edit.part, order)
        return edited, int(others + 1 - edited.whether.sum())

    def _place(self, place: int) -> int:
        if place >= self.grid.places:
            raise ValueError(f"place {place}; 0 to {self.grid.places - 1} are there")
        return place

    def _mask(self, places: list[int]) -> Tensor:
        """(L,) bool."""
        mask = torch.zeros(self.grid.places, dtype=torch.bool, device=self.model.device)
        mask[[self._place(place) for place in places]] = True
        return mask

    def draw(self, drawings: list[PartSequence]) -> list[Drawing]:
        """Canvas, image and log p(z) of several drawings at once."""
        z = PartSequence.cat(drawings).canonical()  # one drawing is one text, whatever its idle steps held
        canvases = self.model.render(z)
        images, log_prior = self.model.decode(canvases), self.model.prior_log_prob(z)
        return [
            Drawing(
                z=_steps(z, row),
                canvas=_text(png(canvases[row])),
                image=_text(png(images[row])),
                parts=int(z.whether[row].sum()),
                log_prior=float(log_prior[row]),
            )
            for row in range(len(z))
        ]

    def frames(self, z: PartSequence) -> Frames:
        """The drawing (1, T) step by step."""
        drawn = z.whether[0].nonzero()[:, 0]
        canvases = self.model.render(z, steps=True)[0]
        canvases = torch.cat([torch.zeros_like(canvases[:1]), canvases[drawn]])
        images = self.model.decode(canvases)
        steps = [(0, None, None)] + [(t + 1, int(z.where[0, t]), int(z.what[0, t])) for t in drawn.tolist()]
        return Frames(
            frames=[
                Frame(step=step, place=place, part=part, canvas=_text(png(canvas)), image=_text(png(image)))
                for (step, place, part), canvas, image in zip(steps, canvases, images, strict=True)
            ]
        )

    def gif(self, z: PartSequence) -> bytes:
        return animate(self.model.drawing(z))


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _steps(z: PartSequence, row: int) -> Steps:
    return Steps.model_construct(
        whether=z.whether[row].tolist(), where=z.where[row].tolist(), what=z.what[row].tolist()
    )
