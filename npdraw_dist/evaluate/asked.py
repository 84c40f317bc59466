"""Whether drawings have the attributes that were asked for, as classifiers of real images read them.

An attribute has alternatives, such as the tones of skin; of a model that is told a class they are the
classes. A classifier of each attribute is trained on the training images that have it; its share of held-out
real images is what drawings are compared with. *Seen* questions are conditions of training images,
*held out* ones come in validation alone, with words that training has.
Shapes: n drawings of a question, C channels, H x W image.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from npdraw_dist.config.load import build, read_file
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.pages import sheet
from npdraw_dist.core.parts import Batch
from npdraw_dist.core.storage import open_filesystem
from npdraw_dist.core.vocabulary import PIECE, words_in
from npdraw_dist.data.splits import shuffled
from npdraw_dist.evaluate.settings import Asked
from npdraw_dist.nn.classifier import Classifier, Labelled, accuracy, fit
from npdraw_dist.nn.npdraw import NPDraw
from npdraw_dist.pipeline.inputs import find_run
from npdraw_dist.pipeline.models import chosen_model, load_npdraw
from npdraw_dist.pipeline.sample import local_folder, require_local_folder
from npdraw_dist.pipeline.store import Store

FEATURES, IMAGES = 64, 60_000  # of a classifier, and those that train it
MOVED = 2  # pixels by which its training images are shifted
SHOWN, COLUMNS, TILE = 20, 4, 320  # questions on the sheet

Alternatives = Mapping[str, frozenset[str]]  # name -> its words


def ask(settings: Asked) -> dict[str, Any]:
    """Writes asked.json and asked.png; returns the numbers of each attribute.

    Raises UserError on a model that cannot be asked, or a file of attributes that does not fit.
    """
    require_local_folder(settings.out)  # before the work, which takes minutes
    folder = chosen_model(settings.model)
    model = load_npdraw(folder)
    model.vocabulary.require()
    attributes = _attributes(settings.attributes, model)
    data = _Told(model, folder)
    torch.manual_seed(settings.seed)
    readers = {name: _Reader(data, each, settings.seed) for name, each in attributes.items()}
    for name, reader in readers.items():
        read = "none" if reader.right is None else f"{reader.right:.1%}"
        print(f"{name}: {read} of {len(reader.valid.labels)} held-out images are read right")
    questions = {
        kind: shuffled(
            [
                text
                for text in texts
                if any(reader.asked(data.words(text)) >= 0 for reader in readers.values())
            ],
            settings.seed,
            "questions",
        )[: settings.questions]
        for kind, texts in (("seen", data.seen), ("held_out", data.held_out))
    }
    found: dict[str, Any] = {name: reader.facts() for name, reader in readers.items()}
    shown = dict[str, Tensor]()
    generator = torch.Generator().manual_seed(settings.seed)
    for kind, texts in questions.items():
        right, drawings = dict.fromkeys(readers, 0), dict.fromkeys(readers, 0)
        for text in texts:
            given = model.given(text, settings.guidance)
            drawn = given.draw(settings.n, generator=generator, temperature=settings.temperature)
            shown[f"{kind}: {text}"] = drawn.images[:1]
            binary = data.binarize != "none"
            pixels = given.draw_pixels(drawn.canvas, generator, drawn.u) if binary else drawn.images
            for name, reader in readers.items():
                truth = reader.asked(data.words(text))
                if truth >= 0:
                    right[name] += int((reader.read(pixels) == truth).sum())
                    drawings[name] += settings.n
        for name in readers:
            share = right[name] / drawings[name] if drawings[name] else None
            found[name] |= {f"{kind}_right": share, f"{kind}_drawings": drawings[name]}
    stated = {name: getattr(settings, name) for name in ("guidance", "temperature", "seed", "n")}
    captions = list(shown)[-SHOWN:] if questions["held_out"] else list(shown)[:SHOWN]
    with local_folder(settings.out) as out:
        result = {**stated, "attributes": found, "questions": questions}
        (out / "asked.json").write_text(json.dumps(result, indent=1) + "\n")
        images = torch.cat([shown[caption] for caption in captions])
        sheet(images, COLUMNS, TILE, [_two_lines(caption) for caption in captions]).save(out / "asked.png")
    return found


def _two_lines(text: str) -> str:
    words = text.split()
    half = (len(words) + 1) // 2
    return f"{' '.join(words[:half])}\n{' '.join(words[half:])}"


def _attributes(path: str | None, model: NPDraw) -> dict[str, Alternatives]:
    if model.vocabulary.kind == "class":
        if path is not None:
            raise UserError("--attributes is for a model that is told words; this one is told a class")
        return {"class": {name: frozenset([name]) for name in model.vocabulary.entries}}
    if path is None:
        raise UserError("--attributes is missing: the model is told words")
    values = read_file(Path(path))
    if not values or not all(texts and isinstance(texts, list) for texts in values.values()):
        raise UserError(f"--attributes {path}: each attribute has a list of its alternatives")
    return {name: {str(text): frozenset(words_in(str(text))) for text in values[name]} for name in values}


class _Told:
    """The images of the model's run, with what it was told of each as one would ask for it.

    A text is "" where the model was told pieces of words.
    """

    def __init__(self, model: NPDraw, folder: str) -> None:
        run = find_run(folder)
        if run is None:
            raise UserError(
                f"--model {folder} is in no run folder, which would have the images that are needed"
            )
        store = Store(*open_filesystem(run[0]))
        experiment = store.with_vocabulary(build(run[1]))
        self.shape, self.binarize = model.spec.image_shape, experiment.data.binarize
        self.by_class = model.vocabulary.kind == "class"
        self._entries = ["", *model.vocabulary.entries]
        self.train, self.valid = (
            store.parses(split, experiment).in_id_order() for split in ("train", "valid")
        )
        self.train_texts, self.valid_texts = self._texts(self.train), self._texts(self.valid)
        known = {self.words(text) for text in self.train_texts}
        self.seen = sorted(set(self.train_texts) - {""})
        self.held_out = [t for t in sorted(set(self.valid_texts) - {""}) if self.words(t) not in known]

    def words(self, text: str) -> frozenset[str]:
        return frozenset([text] if self.by_class else text.split())

    def _texts(self, batch: Batch) -> list[str]:
        texts = []
        for row in batch.condition.tolist():
            words = [self._entries[token] for token in row if token]
            texts.append("" if any(word.startswith(PIECE) for word in words) else " ".join(words))
        return texts


class _Reader:
    """A classifier of one attribute. right: its share of the validation images that have it, if any do."""

    def __init__(self, data: _Told, alternatives: Alternatives, seed: int) -> None:
        self.alternatives = alternatives
        self.train = self._labelled(data, data.train, data.train_texts)
        self.valid = self._labelled(data, data.valid, data.valid_texts)
        if len(self.train.labels.unique()) < 2:
            raise UserError(f"the training images have fewer than two of {', '.join(alternatives)}")
        self.network = Classifier(data.shape, len(alternatives), FEATURES)
        shifts = [(0, 0), (MOVED, 0), (-MOVED, 0), (0, MOVED), (0, -MOVED)]
        images = torch.cat([self.train.images.roll(shift, (2, 3)) for shift in shifts])
        generator = torch.Generator().manual_seed(seed)
        moved = Labelled(images, self.train.labels.repeat(len(shifts)), data.binarize)
        fit(self.network, moved, IMAGES, generator, lambda _: None)
        self.right = accuracy(self.network, self.valid, generator)

    def asked(self, words: frozenset[str]) -> int:
        """The number of the alternative with the most words, all of `words`; -1 if there is not one."""
        sizes = [len(each) if each <= words else 0 for each in self.alternatives.values()]
        most = max(sizes)
        return sizes.index(most) if most and sizes.count(most) == 1 else -1

    def _labelled(self, data: _Told, batch: Batch, texts: list[str]) -> Labelled:
        labels = torch.tensor([self.asked(data.words(text)) for text in texts])
        return Labelled(batch.images[labels >= 0], labels[labels >= 0], data.binarize)

    @torch.no_grad()
    def read(self, images: Tensor) -> Tensor:
        """(n, C, H, W) -> (n,) numbers of alternatives."""
        return self.network.logits(images).argmax(1)

    def facts(self) -> dict[str, Any]:
        return {
            "alternatives": list(self.alternatives),
            "training_images": len(self.train.labels),
            "held_out_images": len(self.valid.labels),
            "held_out_images_right": self.right,
        }
