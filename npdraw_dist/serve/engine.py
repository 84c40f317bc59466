"""What the API does, in plain Python on one model: no HTTP, no Ray.

A drawing is a `PartSequence` of one image, (1, T). Shapes: T steps, L places, C channels, H x W image.
"""

import base64
import binascii
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath

import torch
from torch import Tensor

from npdraw_dist.core import editing
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.images import to_small
from npdraw_dist.core.parts import PartSequence
from npdraw_dist.data.placing import Placement, Target, place_picture
from npdraw_dist.measure.pictures import bank_sheet, looks_order, png
from npdraw_dist.nn.npdraw import NPDraw
from npdraw_dist.parse.parser import Parser
from npdraw_dist.pipeline.model_run import HeldOutImages, find_run
from npdraw_dist.pipeline.models import load_npdraw
from npdraw_dist.pipeline.pictures import animate
from npdraw_dist.serve import exports, proposals, schemas
from npdraw_dist.training.device import refuse_tf32

EXAMPLES = 6  # of each origin
SEEN_IMAGES = 64  # validation images of which the examples are chosen


@dataclass(frozen=True)
class Origin:
    """What is known of a model's run. name: its run folder's.

    images: validation images, of which examples are chosen; None if there are none.
    """

    name: str | None = None
    images: HeldOutImages | None = None


class Engine:
    """Samples, encodes, edits and decodes with `model`.

    Raises ValueError on requests that do not fit the model's sizes.
    """

    def __init__(
        self, model: NPDraw, test_images: HeldOutImages | None = None, origin: Origin | None = None
    ) -> None:
        self.model, self.test_images, self.origin = model, test_images, origin or Origin()
        self.spec, self.grid = model.spec, model.grid

    def describe(self) -> schemas.ModelResponse:
        spec, grid = self.spec, self.grid
        channels, height, width = spec.image_shape
        return schemas.ModelResponse(
            name=self.origin.name,
            source=None if spec.data is None else spec.data.source,
            likelihood=spec.likelihood,
            channels=channels,
            image_height=height,
            image_width=width,
            canvas_height=grid.height,
            canvas_width=grid.width,
            rows=grid.rows,
            columns=grid.columns,
            patch=grid.patch,
            stride=grid.stride,
            margin_top=grid.top,
            margin_left=grid.left,
            steps=spec.steps,
            parts=spec.parts,
            order=spec.order,
            aligned=spec.aligned,
            background="white" if grid.background else "black",
            test_images=0 if self.test_images is None else len(self.test_images),
        )

    def bank(self) -> schemas.BankResponse:
        bank = self.model.bank
        columns = math.ceil(math.sqrt(len(bank)))
        return schemas.BankResponse(
            size=len(bank),
            patch=bank.patch,
            columns=columns,
            sheet=_text(bank_sheet(bank, columns)),
            by_looks=looks_order(bank.parts.cpu()),
        )

    def sequence(self, steps: schemas.Steps) -> PartSequence:
        """The drawing of a request. Raises ValueError if it is none of this model."""
        if not len(steps.whether) == len(steps.where) == len(steps.what):
            raise ValueError("whether, where and what must be of one length")
        z = PartSequence(
            torch.tensor([steps.whether], dtype=torch.bool),
            torch.tensor([steps.where], dtype=torch.int64),
            torch.tensor([steps.what], dtype=torch.int64),
        )
        editing.check_ranges(z, self.spec.steps, self.grid.places, self.spec.parts, self.spec.where_given)
        return z.to(self.model.device)

    def sample(self, seed: int, temperature: float) -> PartSequence:
        generator = torch.Generator(self.model.device).manual_seed(seed)
        return self.model.sample_prior(1, generator, temperature)

    def place_upload(self, content: bytes, invert: schemas.Choice, crop: bool) -> tuple[Tensor, Placement]:
        """A picture of any size -> uint8 (1, C, H, W), as `place_picture` does. Raises NotAPicture."""
        return place_picture(content, self._target(self._extent if crop else 1.0), invert, crop)

    def _target(self, extent: float) -> Target:
        return Target(self.spec.image_shape, self.grid.background, extent)

    @cached_property
    def _extent(self) -> float:
        return proposals.extent(self.model)

    def parse(self, request: schemas.ParseRequest) -> tuple[PartSequence, str]:
        """The drawing that the heuristic parser finds in a picture, and the picture as it takes it.

        Raises NotAPicture, a ValueError, also if the text is not base64.
        """
        try:
            content = base64.b64decode(request.image, validate=True)
        except (binascii.Error, ValueError):
            raise ValueError("image: not base64") from None
        target = Target((self.spec.image_shape[0], self.grid.height, self.grid.width), self.grid.background)
        canvas, placed = place_picture(content, target, request.invert, crop=False)
        if placed.scale < 1:  # by the image's size, as the stage `parse` does
            image, _ = place_picture(content, self._target(1.0), request.invert, crop=False)
            canvas = to_small(image, self.spec.downscale)
        canvas = canvas.to(self.model.device)
        return self._parser(canvas).z, _text(png(canvas[0] / 255))

    @cached_property
    def _parser(self) -> Parser:
        bank, spec = self.model.bank, self.spec
        return Parser(bank, self.grid, spec.steps, spec.order)

    def test_image(self, index: int) -> Tensor:
        """uint8 (1, C, H, W). Raises IndexError."""
        if self.test_images is None:
            raise IndexError("there are no test images: the model is not in its run folder")
        return self.test_images[index]

    def encode(self, image: Tensor) -> tuple[PartSequence, str]:
        """uint8 (1, C, H, W) -> the most likely drawing, and the image as the encoder takes it."""
        x = self.model.as_input(image)
        return self.model.encode(x), _text(png(x[0]))

    def compose(self, request: schemas.ComposeRequest) -> tuple[PartSequence, int]:
        """A with B's parts at the places, and how many of A's parts were dropped."""
        z_a, z_b = self.sequence(request.a), self.sequence(request.b)
        mask = self._mask(request.places)
        z = editing.compose(z_a, z_b, mask, self.spec.order)
        wanted = editing.count_drawn(z_a, ~mask) + editing.count_drawn(z_b, mask)
        return z, int(wanted - z.whether.sum())

    def edit(self, request: schemas.EditRequest) -> tuple[PartSequence, int]:
        """The edited drawing, and how many other parts were dropped."""
        z, order = self.sequence(request.z), self.spec.order
        match request.edit:
            case schemas.Remove(places=places):
                return editing.remove(z, self._mask(places), order), 0
            case schemas.Move(source=source, target=target):
                self._mask([source, target])
                return editing.move(z, source, target, order), 0
            case schemas.Swap(first=first, second=second):
                self._mask([first, second])
                return editing.swap(z, first, second, order), 0
            case schemas.Put(place=place, part=part):
                _require("part", part, self.spec.parts)
                others = editing.count_drawn(z, ~self._mask([place]))
                edited = editing.put(z, place, part, order)
                return edited, int(others + 1 - edited.whether.sum())

    def complete(self, request: schemas.CompleteRequest) -> list[PartSequence]:
        """n drawings that keep what z holds at some places, drawn by the prior elsewhere."""
        z, keep = self.sequence(request.z), self._mask(request.keep)
        done = proposals.complete(self.model, z, keep, request.n, request.seed, request.temperature)
        return _singly(done)

    def next_part(self, request: schemas.NextRequest) -> schemas.NextResponse:
        """Where the prior draws next, and what."""
        z = self.sequence(request.z)
        if request.place is not None:
            _require("place", request.place, self.grid.places)
        found = proposals.next_part(self.model, z, request.place, request.n)
        pairs = zip(found.parts.tolist(), found.chances.tolist(), strict=True)
        return schemas.NextResponse(
            places=found.places.tolist(),
            stop=found.stop,
            parts=[schemas.PartChance(part=part, probability=chance) for part, chance in pairs],
            place=found.place,
        )

    def interpolate(self, request: schemas.InterpolateRequest) -> list[PartSequence]:
        """From A to B, place by place."""
        a, b = self.sequence(request.a), self.sequence(request.b)
        return _singly(editing.interpolate(a, b, self.grid.places, self.spec.order))

    def gallery(self, n: int, seed: int, temperature: float) -> list[PartSequence]:
        """n drawings of the prior."""
        generator = torch.Generator(self.model.device).manual_seed(seed)
        return _singly(self.model.sample_prior(n, generator, temperature))

    def examples(self) -> schemas.ExamplesResponse:
        """Good drawings to begin with: see `proposals.likely`."""
        generator = torch.Generator(self.model.device).manual_seed(0)
        z = self.model.sample_prior(proposals.CANDIDATE_DRAWINGS, generator)
        origins = {"sample": z}
        images = self._seen_images()
        if images is not None:
            origins["validation image"] = self.model.encode(self.model.as_input(images))
        examples = []
        for origin, drawings in origins.items():
            rows, found = proposals.likely(self.model, drawings, EXAMPLES)
            decoded = self.decode(_singly(found.z)) if len(rows) else []
            examples += [
                schemas.Example(name=f"{origin} {row}", log_prior_per_part=score, drawing=drawing)
                for row, score, drawing in zip(rows.tolist(), found.score.tolist(), decoded, strict=True)
            ]
        return schemas.ExamplesResponse(examples=examples)

    def _seen_images(self) -> Tensor | None:
        """uint8 (N, C, H, W): validation images, since to show the test images unasked is to open them."""
        images = self.origin.images
        if images is None or not len(images):
            return None
        try:
            return torch.cat([images[index] for index in range(min(len(images), SEEN_IMAGES))])
        except (UserError, IndexError, OSError):  # the samples are examples enough
            return None

    def _mask(self, places: list[int]) -> Tensor:
        """(L,) bool. Raises ValueError on a place outside the grid."""
        for place in places:
            _require("place", place, self.grid.places)
        mask = torch.zeros(self.grid.places, dtype=torch.bool, device=self.model.device)
        mask[places] = True
        return mask

    def decode(self, drawings: list[PartSequence]) -> list[schemas.DrawingResponse]:
        """Canvas, image and log p(z) of several drawings, decoded as one batch."""
        z = PartSequence.cat(drawings).canonical()  # equal drawings give equal responses
        canvases = self.model.render(z)
        images, log_prior = self.model.decode(canvases), self.model.prior_log_prob(z)
        return [
            schemas.DrawingResponse(
                z=schemas.Steps.model_construct(
                    whether=z.whether[row].tolist(), where=z.where[row].tolist(), what=z.what[row].tolist()
                ),
                canvas=_text(png(canvases[row])),
                image=_text(png(images[row])),
                parts=int(z.whether[row].sum()),
                log_prior=float(log_prior[row]),
            )
            for row in range(len(z))
        ]

    def frames(self, z: PartSequence) -> schemas.StepsResponse:
        """The drawing step by step."""
        drawn = z.whether[0].nonzero()[:, 0]
        canvases = self.model.render(z, steps=True)[0]
        canvases = torch.cat([torch.full_like(canvases[:1], self.grid.background), canvases[drawn]])
        images = self.model.decode(canvases)
        steps = [(0, None, None)] + [(t + 1, int(z.where[0, t]), int(z.what[0, t])) for t in drawn.tolist()]
        frames = [
            schemas.Frame(step=t, place=place, part=part, canvas=_text(png(canvas)), image=_text(png(image)))
            for (t, place, part), canvas, image in zip(steps, canvases, images, strict=True)
        ]
        return schemas.StepsResponse(frames=frames)

    def gif(self, z: PartSequence) -> bytes:
        """The drawing step by step as a GIF."""
        return animate(self.model, self.model.trace(z))

    def strip(self, z: PartSequence, frames: int) -> bytes:
        """The drawing step by step in one PNG."""
        return exports.strip(self.model, z, frames)

    def figure(self, z: PartSequence, kind: exports.Kind, outlines: bool) -> bytes:
        """The drawing as a vector file."""
        return exports.figure(self.model, z, kind, outlines)


def open_engine(folder: str, device: torch.device | str = "cpu", model: NPDraw | None = None) -> Engine:
    """The engine of a model folder or URI; model: that which lies there, if it is loaded already.

    Raises UserError if there is no model of parts.
    """
    model = (model or load_npdraw(folder)).to(device)
    refuse_tf32(model.device)
    run = find_run(folder)
    origin = Origin(
        name=None if run is None else PurePosixPath(run[0]).name or None,
        images=HeldOutImages(folder, model.spec, "serve", "valid"),
    )
    return Engine(model, HeldOutImages(folder, model.spec, "serve"), origin)


def _singly(z: PartSequence) -> list[PartSequence]:
    """(B, T) -> B drawings (1, T)."""
    return [z[row : row + 1] for row in range(len(z))]


def _require(name: str, value: int, size: int) -> None:
    if value >= size:
        raise ValueError(f"{name} {value}; 0 to {size - 1} are valid")


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
