"""Implements `evaluate --check-conditions`, which measures how often drawings have the requested attributes.

An attribute, such as skin tone, has alternatives. For a model conditioned on a class, the alternatives are
the classes. A classifier for each attribute is trained on the training images that have the attribute. The
classifier's accuracy on validation images is the reference for its accuracy on drawings. A *seen* condition
belongs to a training image. A *held out* condition belongs only to validation images, but all its words are
in the vocabulary. Shapes: n drawings of a condition, C channels, H x W image.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any

import torch
from torch import Tensor

from npdraw_dist.config.load import build, read_file
from npdraw_dist.core.pages import sheet
from npdraw_dist.core.parts import Batch
from npdraw_dist.core.vocabulary import PIECE, words_in
from npdraw_dist.data.splits import shuffled
from npdraw_dist.evaluate.settings import ConditionTest
from npdraw_dist.nn.classifier import Classifier, Labelled, accuracy, fit
from npdraw_dist.nn.npdraw import NPDraw
from npdraw_dist.pipeline.inputs import find_run
from npdraw_dist.pipeline.sample import local_folder, require_local_folder
from npdraw_dist.pipeline.store import Store
from npdraw_dist.pipeline.trained_models import chosen_model, load_npdraw
from npdraw_dist.system.errors import UserError
from npdraw_dist.system.storage import open_filesystem

FEATURES, IMAGES = 64, 60_000  # number of features of a classifier; number of images that it sees in training
SHIFTS = [(0, 0), (2, 0), (-2, 0), (0, 2), (0, -2)]  # pixels by which training images are shifted (augmented)
SHOWN, COLUMNS, TILE = 20, 4, 320  # in conditions.png: conditions, columns, least side of an image in pixels

Alternatives = Mapping[str, frozenset[str]]  # name of an alternative -> the words of the name


def measure_conditions(settings: ConditionTest) -> list[str]:
    """Writes conditions.json and conditions.png; returns the result as lines of text.

    Raises UserError if the model takes no condition, or if the file of attributes does not fit the model.
    """
    require_local_folder(settings.out)  # checked first, since the measurement takes minutes
    folder = chosen_model(settings.model)
    model = load_npdraw(folder)
    model.vocabulary.require()
    attributes = _attributes(settings.attributes, model)
    data = _Conditions(model, folder)
    torch.manual_seed(settings.seed)
    readers = {name: _Reader(data, each, settings.seed) for name, each in attributes.items()}
    questions = {
        kind: _chosen(texts, data, readers, settings)
        for kind, texts in (("seen", data.seen), ("held_out", data.held_out))
    }
    found = {name: reader.facts() for name, reader in readers.items()}
    lines = []
    for name, facts in found.items():
        read = "none" if facts["held_out_images_right"] is None else f"{facts['held_out_images_right']:.1%}"
        lines.append(f"{name}: {read} of {facts['held_out_images']} held-out images are read right")
    shown = dict[str, Tensor]()
    generator = torch.Generator().manual_seed(settings.seed)
    for kind, texts in questions.items():
        counts, first = _count(model, texts, readers, data, generator, settings)
        shown |= {f"{kind}: {text}": image for text, image in first.items()}
        for name, (right, drawings) in counts.items():
            share = right / drawings if drawings else None
            found[name] |= {f"{kind}_right": share, f"{kind}_drawings": drawings}
            if share is not None:
                title = kind.replace("_", " ")
                lines.append(f"{name}, {title}: {share:.1%} of {drawings} drawings are read as requested")
    captions = list(shown)[-SHOWN:] if questions["held_out"] else list(shown)[:SHOWN]
    with local_folder(settings.out) as out:
        stated = {
            "guidance": model.guidance_of(settings.guidance),
            "temperature": model.temperature_of(settings.temperature),
            "seed": settings.seed,
            "n": settings.n,
        }
        result = {**stated, "attributes": found, "questions": questions}
        (out / "conditions.json").write_text(json.dumps(result, indent=1) + "\n")
        images = torch.cat([shown[caption] for caption in captions])
        rows = ["\n".join(wrap(caption, len(caption) // 2 + 8)) for caption in captions]
        sheet(images, COLUMNS, TILE, rows).save(out / "conditions.png")
    return [*lines, f"{settings.out}/conditions.json, {settings.out}/conditions.png"]


def _chosen(
    texts: Sequence[str], data: "_Conditions", readers: Mapping[str, "_Reader"], settings: ConditionTest
) -> list[str]:
    """Chooses, at random, at most settings.questions conditions that contain at least one attribute."""
    having = [
        text for text in texts if any(reader.requested(data.words(text)) >= 0 for reader in readers.values())
    ]
    return shuffled(having, settings.seed, "questions")[: settings.questions]


def _count(
    model: NPDraw,
    texts: Sequence[str],
    readers: Mapping[str, "_Reader"],
    data: "_Conditions",
    generator: torch.Generator,
    settings: ConditionTest,
) -> tuple[dict[str, tuple[int, int]], dict[str, Tensor]]:
    """Returns attribute -> (drawings read as requested, all drawings), and condition -> its first drawing."""
    counts, first = dict.fromkeys(readers, (0, 0)), dict[str, Tensor]()
    for text in texts:
        given = model.given(text, model.guidance_of(settings.guidance))
        drawn = given.draw(settings.n, generator=generator, temperature=settings.temperature)
        first[text] = drawn.images[:1]
        binary = data.binarize != "none"
        pixels = drawn.pixels(generator=generator) if binary else drawn.images
        for name, reader in readers.items():
            truth = reader.requested(data.words(text))
            if truth >= 0:
                right, drawings = counts[name]
                counts[name] = (right + int((reader.read(pixels) == truth).sum()), drawings + settings.n)
    return counts, first


def _attributes(path: str | None, model: NPDraw) -> Mapping[str, Alternatives]:
    """Attribute -> its alternatives, from the vocabulary or else from the YAML file `path`."""
    if own := model.vocabulary.attributes:
        if path is not None:
            raise UserError("--attributes is for a model conditioned on words; this one takes a class")
        return own
    if path is None:
        raise UserError("--attributes is missing; a model conditioned on words needs it")
    values = read_file(Path(path))
    if not values or not all(texts and isinstance(texts, list) for texts in values.values()):
        raise UserError(f"in --attributes {path}, each attribute must have a list of its alternatives")
    return {name: {str(text): frozenset(words_in(str(text))) for text in values[name]} for name in values}


class _Conditions:
    """The training and validation images of the model's run, and the condition of each image as text.

    The text is "" if the condition contains pieces of words.
    """

    def __init__(self, model: NPDraw, folder: str) -> None:
        run = find_run(folder)
        if run is None:
            raise UserError(
                f"--model {folder} is in no run folder; --check-conditions needs the images of its run"
            )
        store = Store(*open_filesystem(run[0]))
        experiment = store.with_vocabulary(build(run[1]))
        self.shape, self.binarize = model.spec.image_shape, experiment.data.binarize
        self.words = model.vocabulary.words_of
        entries = ["", *model.vocabulary.entries]
        self.train, self.valid = (
            store.parses(split, experiment).in_id_order() for split in ("train", "valid")
        )
        self.train_texts, self.valid_texts = (_texts(batch, entries) for batch in (self.train, self.valid))
        known = {self.words(text) for text in self.train_texts}
        self.seen = sorted(set(self.train_texts) - {""})
        self.held_out = [t for t in sorted(set(self.valid_texts) - {""}) if self.words(t) not in known]


def _texts(batch: Batch, entries: Sequence[str]) -> list[str]:
    texts = []
    for row in batch.condition.tolist():
        words = [entries[token] for token in row if token]
        texts.append("" if any(word.startswith(PIECE) for word in words) else " ".join(words))
    return texts


class _Reader:
    """A classifier that predicts which alternative of one attribute an image shows."""

    def __init__(self, data: _Conditions, alternatives: Alternatives, seed: int) -> None:
        self.alternatives = alternatives
        self.train = self._labelled(data, data.train, data.train_texts)
        self.valid = self._labelled(data, data.valid, data.valid_texts)
        if len(self.train.labels.unique()) < 2:
            raise UserError(f"the training images have fewer than two of {', '.join(alternatives)}")
        self.network = Classifier(data.shape, len(alternatives), FEATURES)
        images = torch.cat([self.train.images.roll(shift, (2, 3)) for shift in SHIFTS])
        generator = torch.Generator().manual_seed(seed)
        moved = Labelled(images, self.train.labels.repeat(len(SHIFTS)), data.binarize)
        fit(self.network, moved, IMAGES, generator, lambda _: None)
        self.accuracy = accuracy(self.network, self.valid, generator)

    def requested(self, words: frozenset[str]) -> int:
        """Index of the longest alternative whose words are all in `words`; -1 if there is none or a tie."""
        sizes = [len(each) if each <= words else 0 for each in self.alternatives.values()]
        most = max(sizes)
        return sizes.index(most) if most and sizes.count(most) == 1 else -1

    def _labelled(self, data: _Conditions, batch: Batch, texts: list[str]) -> Labelled:
        labels = torch.tensor([self.requested(data.words(text)) for text in texts])
        return Labelled(batch.images[labels >= 0], labels[labels >= 0], data.binarize)

    @torch.no_grad()
    def read(self, images: Tensor) -> Tensor:
        """Images (n, C, H, W) -> the indices (n,) of the alternatives that the classifier predicts."""
        return self.network.logits(images).argmax(1)

    def facts(self) -> dict[str, Any]:
        """The attribute's entry in conditions.json; the accuracy is None without validation images."""
        return {
            "alternatives": list(self.alternatives),
            "training_images": len(self.train.labels),
            "held_out_images": len(self.valid.labels),
            "held_out_images_right": self.accuracy,
        }
