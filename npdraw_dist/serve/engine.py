"""The operations of the API in plain Python on one model, without HTTP and Ray.

A drawing is a `Drawings` object with one image. Shapes: T steps, of which N draw, L places, C channels,
h x w canvas, H x W image.
"""

import base64
import binascii
import contextlib
import hashlib
import io
import math
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from npdraw_dist.core.images import canvas_bytes, png, tiled, to_pil
from npdraw_dist.core.pages import rows_png
from npdraw_dist.core.parts import PartSequence
from npdraw_dist.core.pictures import Frame
from npdraw_dist.nn import editing
from npdraw_dist.nn.drawings import Drawings, redrawn
from npdraw_dist.nn.editing import mask_of, place_of
from npdraw_dist.nn.npdraw import NPDraw
from npdraw_dist.parse.parser import Parser
from npdraw_dist.pipeline.inputs import SplitImages
from npdraw_dist.pipeline.pictures import looks_order
from npdraw_dist.pipeline.trained_models import load_npdraw, name_of
from npdraw_dist.serve import proposals, schemas
from npdraw_dist.serve.uploads import place_picture
from npdraw_dist.system.errors import UserError
from npdraw_dist.system.made_by import fingerprint
from npdraw_dist.system.process import refuse_tf32

EXAMPLES = 6  # number of examples from samples; as many again come from validation images
SEEN_IMAGES = 64  # validation images from which examples are chosen
SIDE, GAP = 2.0, 0.1  # side of each picture of a figure and gap between them, inches
OUTLINE = "#d6336c"


class Engine:
    """Samples, encodes, edits and decodes with `model`.

    folder: the model's folder, used to find the images of its run. Methods raise ValueError if a request
    does not fit the model's sizes.
    """

    def __init__(self, model: NPDraw, folder: str | None = None) -> None:
        self.model, self.spec, self.grid = model, model.spec, model.grid
        self.test_images = self.valid_images = None
        self.name = "a model in memory"
        if folder is not None:
            self.test_images = SplitImages(folder, model.spec, "serve")
            self.valid_images = SplitImages(folder, model.spec, "serve", "valid")
            self.name = name_of(folder)

    def describe(self) -> schemas.ModelResponse:
        spec, grid = self.spec, self.grid
        channels, height, width = spec.image_shape
        return schemas.ModelResponse(
            name=self.name,
            hash=self._hash,
            source=None if spec.data is None else spec.data.source,
            channels=channels,
            image_height=height,
            image_width=width,
            canvas_height=grid.height,
            canvas_width=grid.width,
            margin_top=grid.top,
            margin_left=grid.left,
            background="white" if grid.background else "black",
            condition=spec.prior.condition,
            vocabulary=self.model.vocabulary.known,
            temperature=spec.temperature,
            guidance=spec.guidance,
            test_images=0 if self.test_images is None else len(self.test_images),
            **{name: getattr(grid, name) for name in ("rows", "columns", "patch", "stride")},
            **{name: getattr(spec, name) for name in ("likelihood", "steps", "parts", "order", "aligned")},
        )

    @cached_property
    def _hash(self) -> str:
        parts = self.model.bank_parts.cpu().numpy().tobytes()
        return fingerprint({**self.spec.model_dump(mode="json"), "bank": hashlib.sha256(parts).hexdigest()})

    def bank(self) -> schemas.BankResponse:
        bank = self.model.bank
        columns = math.ceil(math.sqrt(len(bank)))
        return schemas.BankResponse(
            size=len(bank),
            patch=bank.patch,
            columns=columns,
            sheet=_text(png(tiled(bank.parts, columns))),
            by_looks=looks_order(bank.parts.cpu()),
        )

    def drawing(self, given: schemas.Latents) -> Drawings:
        """The drawing given in a request. Raises ValueError if it does not fit this model."""
        if not len(given.whether) == len(given.where) == len(given.what):
            raise ValueError("whether, where and what must have the same length")
        z = PartSequence(
            torch.tensor([given.whether], dtype=torch.bool),
            torch.tensor([given.where], dtype=torch.int64),
            torch.tensor([given.what], dtype=torch.int64),
        )
        return self.model.as_drawings(z, u=None if given.u is None else self._appearance(given.u))

    def _appearance(self, text: str) -> Tensor:
        """Decodes a request's u, the details that parts cannot express, from base64 to (1, ...)."""
        if self.model.appearance is None:
            raise ValueError("this model has no u; leave it out")
        shape, content = self.model.appearance.shape, _bytes("u", text)
        u = np.frombuffer(content if len(content) == 4 * math.prod(shape) else b"", "<f4").astype(np.float32)
        if not len(u) or not np.isfinite(u).all():
            raise ValueError(f"u must be {math.prod(shape)} finite numbers, as float32 in base64")
        return torch.from_numpy(u).view(1, *shape).to(self.model.device)

    def responses(self, drawings: Sequence[Drawings]) -> list[schemas.DrawingResponse]:
        """Latents, canvas, image and log p(z) of all drawings, decoded as one batch."""
        z = PartSequence.cat([one.z for one in drawings]).canonical()  # equal drawings give equal responses
        canvas = torch.cat([one.canvas for one in drawings])
        expected = [self.model.mean_appearance(one.canvas) if one.u is None else one.u for one in drawings]
        us = [u for u in expected if u is not None]
        images = self.model.decode(canvas, torch.cat(us) if us else None)
        log_prior = self.model.prior_log_prob(z)
        rows_u = [None if one.u is None else one.u[k] for one in drawings for k in range(len(one))]
        texts = [None if u is None else _text(u.cpu().numpy().astype("<f4").tobytes()) for u in rows_u]
        return [
            schemas.DrawingResponse(
                z=schemas.Latents.model_construct(
                    **{name: values[row].tolist() for name, values in vars(z).items()}, u=texts[row]
                ),
                canvas=_text(png(canvas[row])),
                image=_text(png(images[row])),
                parts=int(z.whether[row].sum()),
                log_prior=float(log_prior[row]),
            )
            for row in range(len(z))
        ]

    def place_upload(
        self, content: bytes, invert: schemas.Choice, crop: bool
    ) -> tuple[Tensor, schemas.Placement]:
        """Converts a picture of any size to uint8 (1, C, H, W) by `place_picture`. Raises BadPicture."""
        return place_picture(
            content, self._frame(self.spec.image_shape), invert, self._extent if crop else None
        )

    def _frame(self, shape: tuple[int, int, int]) -> Frame:
        return Frame(shape, "white" if self.grid.background else "black", "crop")

    @cached_property
    def _extent(self) -> float:
        return proposals.extent(self.model)

    def parse(self, request: schemas.ParseRequest) -> tuple[Drawings, str]:
        """The drawing that the heuristic parser finds in a picture, and the canvas that it parsed.

        Raises ValueError, such as for text that is not base64, or its subclass BadPicture.
        """
        content = _bytes("image", request.image)
        shape = (self.spec.image_shape[0], self.grid.height, self.grid.width)
        canvas, placed = place_picture(content, self._frame(shape), request.invert)
        if placed.scaled < 1:  # a large picture is first shrunk to the image's size, as in the stage `parse`
            canvas = canvas_bytes(self.place_upload(content, request.invert, False)[0], self.spec.downscale)
        z = self._parser(canvas.to(self.model.device)).z
        found = self.model.as_drawings(z)
        if request.z is not None:
            found = redrawn(z, self.drawing(request.z))
        return found, _text(png(canvas[0] / 255))

    @cached_property
    def _parser(self) -> Parser:
        return Parser(self.model.bank, self.grid, self.spec.steps, self.spec.order)

    def test_image(self, index: int) -> Tensor:
        """A test image, uint8 (1, C, H, W). Raises IndexError if there is none with this index."""
        if self.test_images is None:
            raise IndexError("there are no test images: the model is not in its run folder")
        return self.test_images[index]

    def encode(self, image: Tensor) -> tuple[Drawings, str]:
        """uint8 (1, C, H, W) -> the most likely drawing, and the image that the encoder read."""
        x = self.model.as_input(image)
        return self.model.as_drawings(x), _text(png(x[0]))

    def compose(self, request: schemas.ComposeRequest) -> tuple[Drawings, int]:
        """A with B's parts at the requested places, and how many other parts of A had no step left."""
        a, b = self.drawing(request.a), self.drawing(request.b)
        made = self.model.compose(a, b, request.places)
        mask = mask_of(request.places, self.grid, 1)
        return made, editing.dropped(made.z, (a.z, ~mask), (b.z, mask))

    def edit(self, request: schemas.EditRequest) -> tuple[Drawings, int]:
        """The edited drawing, and the number of parts that were dropped because no step was left."""
        before, edit = self.drawing(request.z), self.model.edit
        match request.edit:
            case schemas.Remove(places=places):
                return edit(before, remove=places), 0
            case schemas.Move(source=source, target=target):
                return edit(before, move={source: target}), 0
            case schemas.Swap(first=first, second=second):
                return edit(before, swap={first: second}), 0
            case schemas.Put(place=place, part=part):
                made = edit(before, put={place: part})
                return made, 1 + editing.dropped(made.z, (before.z, ~mask_of([place], self.grid, 1)))

    def sample(self, request: schemas.SampleRequest, n: int = 1) -> Drawings:
        return self.conditioned(request).draw(n, seed=request.seed, temperature=request.temperature)

    def conditioned(self, request: schemas.SampleRequest) -> NPDraw:
        """The model conditioned as requested. Raises UserError if the model does not know the condition."""
        if request.condition is None:
            return self.model
        return self.model.given(request.condition, self.model.guidance_of(request.guidance))

    def complete(self, request: schemas.CompleteRequest) -> Drawings:
        begun = self.drawing(request.z).repeated(request.n)
        keep, sketch = request.keep, request.sketch or None
        if sketch and not self.spec.aligned:
            keep, sketch = [*keep, *sketch], None
        return self.conditioned(request).complete(
            begun,
            keep,
            seed=request.seed,
            temperature=request.temperature,
            effort=proposals.QUICK,
            sketch=sketch,
        )

    def surprise(self, given: schemas.Latents) -> schemas.SurpriseResponse:
        nats = self.model.surprise(self.drawing(given))
        return schemas.SurpriseResponse(places=nats.flatten().tolist())

    def between(self, request: schemas.InterpolateRequest) -> Drawings:
        return self.drawing(request.a).towards(self.drawing(request.b))

    def next_part(self, request: schemas.NextRequest) -> schemas.NextResponse:
        place = None if request.place is None else place_of(request.place, self.grid)
        return proposals.next_part(self.model, self.drawing(request.z).z, place, request.n)

    def examples(self) -> schemas.ExamplesResponse:
        """Samples and reconstructed validation images, chosen by `proposals.likely`."""
        origins = {"sample": self.model.draw(proposals.CANDIDATE_DRAWINGS, seed=0)}
        with contextlib.suppress(UserError, IndexError, OSError):  # if validation images are missing
            if valid := self.valid_images:  # test images are not shown, so the test split stays held out
                seen = torch.cat([valid[index] for index in range(min(len(valid), SEEN_IMAGES))])
                origins["validation image"] = self.model.as_drawings(seen)
        examples = []
        for origin, drawings in origins.items():
            rows, scores = proposals.likely(self.model, drawings, EXAMPLES)
            shown = self.responses([drawings[rows]]) if len(rows) else []
            examples += [
                schemas.Example(name=f"{origin} {row}", log_prior_per_part=score, drawing=drawing)
                for row, score, drawing in zip(rows.tolist(), scores.tolist(), shown, strict=True)
            ]
        return schemas.ExamplesResponse(examples=examples)

    def frames(self, given: schemas.Latents) -> schemas.StepsResponse:
        """The empty canvas, then the drawing after each of its steps that draw."""
        drawing = self.drawing(given)
        z, (drawn, canvases, images) = drawing.z, steps(self.model, drawing)
        made = [(0, None, None)] + [(t + 1, int(z.where[0, t]), int(z.what[0, t])) for t in drawn]
        frames = [
            schemas.Frame(step=t, place=place, part=part, canvas=_text(png(canvas)), image=_text(png(image)))
            for (t, place, part), canvas, image in zip(made, canvases, images, strict=True)
        ]
        return schemas.StepsResponse(frames=frames)


def open_engine(folder: str, device: torch.device | str = "cpu", model: NPDraw | None = None) -> Engine:
    """The engine of a model folder or URI. Raises UserError if it contains no NP-DRAW model.

    model: the model of that folder, if it has been loaded already.
    """
    model = (model or load_npdraw(folder)).to(device)
    refuse_tf32(model.device)
    return Engine(model, folder)


def steps(model: NPDraw, drawing: Drawings) -> tuple[list[int], Tensor, Tensor]:
    """The N steps that draw, N + 1 canvases (C, h, w) from the empty one to the last, and their images."""
    drawn = drawing.z.whether[0].nonzero()[:, 0]
    canvases = model.render(drawing.z, steps=True)[0]
    canvases = torch.cat([torch.full_like(canvases[:1], model.grid.background), canvases[drawn]])
    u = None if drawing.u is None else drawing.u.expand(len(canvases), *drawing.u.shape[1:])
    return drawn.tolist(), canvases, model.decode(canvases, u)


def gif(model: NPDraw, drawing: Drawings) -> bytes:
    """The drawing step by step, as an animated GIF."""
    return model.trace(drawing.z, u=drawing.u).gif()


def strip(model: NPDraw, drawing: Drawings, frames: int) -> bytes:
    """The canvas above the image, after at most `frames` of the drawing's steps, as a PNG."""
    drawn, canvases, images = steps(model, drawing)
    count = min(frames, len(drawn))
    shown = [round((k + 1) * len(drawn) / count) for k in range(count)] or [0]  # parts on each shown canvas
    captions = [f"{parts} of {len(drawn)}" for parts in shown]
    return rows_png({"canvas": canvases[shown].cpu(), "image": images[shown].cpu()}, [None, captions])


def figure(model: NPDraw, drawing: Drawings, outlines: bool) -> bytes:
    """Canvas and image as a PDF with sharp pixels at any size. outlines: draw a frame around each part."""
    page = Figure(figsize=(2 * SIDE + GAP, SIDE))
    width = SIDE / (2 * SIDE + GAP)
    for number, picture in enumerate(to_pil(drawing.canvas) + to_pil(drawing.images)):
        axes = page.add_axes((number * (1 - width), 0, width, 1))
        axes.set_axis_off()
        axes.imshow(picture.convert("RGB"), interpolation="none")  # a colour map would round some greys
    if outlines:
        side, where = model.grid.patch, drawing.z.where[drawing.z.whether].cpu()
        corners = (model.grid.corners[where] - 0.5).tolist()  # axes place a pixel around its centre
        frames = [Rectangle((column, row), side, side) for row, column in corners]
        page.axes[0].add_collection(
            PatchCollection(frames, facecolor="none", edgecolor=OUTLINE, linewidth=0.5), autolim=False
        )
    file = io.BytesIO()
    page.savefig(file, format="pdf", transparent=True, metadata={"CreationDate": None})
    return file.getvalue()


def _bytes(name: str, text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(f"{name} is not base64") from None


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
