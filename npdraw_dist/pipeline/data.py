"""Stage `data`: reads the source once and writes the canonical shards that all later stages read.

Data that `npdraw prepare` wrote are canonical shards already, so the manifest only names their folder.
"""

import contextlib
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from npdraw_dist.config.load import dump, with_changes
from npdraw_dist.config.networks import CONDITIONS
from npdraw_dist.config.prepared import MANIFEST, Prepared
from npdraw_dist.config.schema import DataConfig, Experiment
from npdraw_dist.core.vocabulary import VOCABULARIES, words_in
from npdraw_dist.data.ingest import FORMATS, Format, Show, ingest, manifest_of, settings_print
from npdraw_dist.data.parses import Parses
from npdraw_dist.data.shard_folder import ShardFolder
from npdraw_dist.data.shards import Canonical, Source, open_source
from npdraw_dist.data.splits import SPLITS, Split
from npdraw_dist.pipeline.progress import results, stage_progress
from npdraw_dist.pipeline.stage import Stage
from npdraw_dist.pipeline.store import CONFIG, VOCABULARY, Store, fingerprint_of, finished
from npdraw_dist.system.errors import UserError
from npdraw_dist.system.lease import Lease, is_lease
from npdraw_dist.system.storage import (
    list_files,
    open_filesystem,
    require_apart,
    require_writable,
    write_text,
    writing,
)

NAME = "data"
MOST_TEXTS = 1 << 20  # largest number of images whose words are counted for the vocabulary


@dataclass(frozen=True)
class Given:
    """Images that the caller of `run.start` passes in place of `data.source`.

    counts: number of images in each split, None if unknown. stamp: a hash that changes with the images. open:
    opens the source, after `Store.claim`. close: removes the files that `open` wrote to the run folder.
    """

    counts: Mapping[Split, int | None]
    classes: Sequence[str]
    stamp: str
    open: Callable[[Store], Source]
    close: Callable[[Store], None] = lambda store: None


class Costs:
    """Measures the time of a stage and adds the costs in `before`, the manifest of an earlier command."""

    def __init__(self, before: Mapping[str, Any] | None) -> None:
        self._before = before or {}
        self._started, self._cpu_started = time.perf_counter(), time.process_time()

    def numbers(self, images: int, driver_s: float, actors_s: float) -> dict[str, float]:
        """The costs for the manifest. images: number read by this command. actors_s: CPU seconds spent on all
        shards. driver_s: the part of actors_s that this process spent."""
        seconds, old = time.perf_counter() - self._started, self._before
        own_s = time.process_time() - self._cpu_started - driver_s
        own_s += old.get("core_seconds", 0.0) - old.get("actor_core_seconds", 0.0)
        return {
            "seconds": round(seconds + old.get("seconds", 0.0), 2),
            "images_per_s": images / seconds,
            "core_seconds": round(own_s + actors_s, 2),
            "actor_core_seconds": round(actors_s, 2),
        }


class RunData:
    """The source of a run's images, which is opened only once. given: images that replace `data.source`."""

    def __init__(self, experiment: Experiment, given: Given | None = None) -> None:
        self._experiment, self._given = experiment, given
        self._source: Source | None = None

    def require_same(self, store: Store) -> None:
        """Checks that a resumed run that has read its images continues with the same images.

        Raises UserError if the given images, or the images at a new `data.path`, differ. Warns if files at an
        unchanged `data.path` differ; the run then continues with the images that it has read.
        """
        manifest, experiment = done(self._experiment, store), self._experiment
        if manifest is None:
            return
        if self._given is not None:
            require_same(manifest, self._given.stamp, store)
        elif experiment.data.path != store.config().data.path:
            follow(manifest, self.source(store), experiment, store)
        else:
            with contextlib.suppress(UserError):  # the files may be gone
                source = open_source(experiment.data, experiment.seed, download=False)
                if source.stamp != manifest["stamp"]:
                    results.print(
                        f"warning: the files of data.source {experiment.data.source} changed; "
                        f"{store.shown()} resumes with the images that it has read",
                        markup=False,
                    )

    def source(self, store: Store) -> Source:
        """Returns the source, which the first call opens. Raises UserError if the source is missing."""
        if self._source is None and self._given is not None:
            self._source = self._given.open(store)
        if self._source is None:
            self._source = open_source(self._experiment.data, self._experiment.seed)
        return self._source

    def close(self, store: Store) -> None:
        """Removes the files that `Given.open` wrote to the run. Called after all images are read."""
        if self._given is not None:
            self._given.close(store)

    def counts(self, store: Store) -> dict[str, int | None]:
        """The number of images in each split that the run reads; None if known only after reading."""
        if self._given is not None:
            return {split: self._given.counts.get(split) for split in needed_splits(self._experiment)}
        source = self.source(store)
        return {split: source.count(split) for split in needed_splits(self._experiment)}

    def classes(self, store: Store) -> Sequence[str]:
        """The names of the classes; empty if they are not known."""
        return self.source(store).classes if self._given is None else self._given.classes


def needed_splits(experiment: Experiment) -> tuple[Split, ...]:
    """The splits that a run reads; the test split is read only if `eval.split` is test."""
    return SPLITS if experiment.eval.split == "test" else ("train", "valid")


def done(experiment: Experiment, store: Store, stage: str = NAME) -> dict[str, Any] | None:
    """The manifest of the stage; None if it has not finished, or not for all splits that the run reads."""
    manifest = finished(store, experiment, stage)
    has_splits = manifest is not None and set(manifest["splits"]) >= set(needed_splits(experiment))
    return manifest if has_splits else None


def run(experiment: Experiment, store: Store, data: RunData | None = None) -> dict[str, Any]:
    """Writes data/ with the splits that the run needs; returns the manifest. data: the source, if known."""
    if (manifest := done(experiment, store)) is not None:
        return manifest
    before = finished(store, experiment, NAME)  # an earlier command may have read other splits
    costs, data = Costs(before), data or RunData(experiment)
    source = data.source(store)
    if before is not None:
        require_same(before, source.stamp, store)
    if "test" in needed_splits(experiment):
        store.record_opening(NAME)
    if source.canonical is not None:
        manifest, shards = _named(experiment, source, source.canonical), source.canonical
        driver_s = actors_s = 0.0
        new = manifest["images"]
    else:
        folder = ShardFolder(store.filesystem, store.path(NAME), f"{settings_print(source)}/{source.stamp}")
        folder.claim()
        splits, settings = needed_splits(experiment), experiment.data
        with stage_progress(NAME, source.count(*splits) or 0) as show:
            written = ingest(source, settings, folder, experiment.seed, splits, show=show)
        manifest = manifest_of(source, folder, written, settings)
        shards = Canonical(store.filesystem, folder.root, Prepared.of(manifest))
        driver_s, actors_s = written.driver_s, sum(facts.core_seconds for facts in written.shards)
        new = written.new
    manifest |= {"fingerprint": fingerprint_of(experiment, NAME), **costs.numbers(new, driver_s, actors_s)}
    store.write_json(_vocabulary(shards), NAME, VOCABULARY)
    data.close(store)
    store.write_manifest(manifest, NAME)
    return manifest


def require_same(manifest: Mapping[str, Any], stamp: str, store: Store) -> None:
    """Raises UserError if `stamp` differs from the stamp of the images that the run has read."""
    if manifest["stamp"] != stamp:
        raise UserError(
            f"the images of run {store.shown()} differ from those that it has read; take another --name, or "
            "put them back"
        )


def follow(manifest: Mapping[str, Any], source: Source, experiment: Experiment, store: Store) -> None:
    """Records the new `data.path` of `experiment` in the run. Raises UserError if the images there differ."""
    require_same(manifest, source.stamp, store)
    if source.canonical is not None and manifest.get("root") != source.canonical.shown:
        store.write_json({**manifest, "root": source.canonical.shown}, NAME, MANIFEST)
    before, path = store.config(), experiment.data.path
    if before.data.path != path:
        write_text(store.filesystem, store.path(CONFIG), dump(with_changes(before, {"data": {"path": path}})))


def _named(experiment: Experiment, source: Source, shards: Canonical) -> dict[str, Any]:
    """The manifest for shards outside the run folder. It states only the splits that this command needs."""
    stated = shards.manifest
    splits = {split: stated.splits.get(split, 0) for split in needed_splits(experiment)}
    return {
        "root": shards.shown,
        "images": sum(splits.values()),
        "splits": splits,
        "rejected": 0,
        "left_out": {},
        "digests": stated.digests,
        "digest": stated.digest,
        "stamp": source.stamp,
        "classes": list(stated.classes),
        "source": source.facts(),
    }


def _vocabulary(shards: Canonical) -> dict[str, list[str]]:
    """Kind of entries -> the entries that a condition can name, from the training images."""
    counts = Counter[str]()
    most = MOST_TEXTS if shards.manifest.has_words else 0  # with 0, `texts` opens no file
    for texts in Parses.of_split(shards, "train").texts(most):
        for text in texts:
            counts.update(words_in(text))
    classes = shards.manifest.classes
    return {of.entries: list(VOCABULARIES[kind].found(classes, counts)) for kind, of in CONDITIONS.items()}


def describe(manifest: Mapping[str, Any]) -> str:
    """Formats the stage's numbers for the table at the end of a run."""
    splits = ", ".join(f"{name} {count:,}" for name, count in manifest["splits"].items())
    return splits + (f"; {manifest['rejected']:,} rejected" if manifest["rejected"] else "")


def prepare(
    data: DataConfig, seed: int, out: str, format: Format, source: Source, show: Show
) -> dict[str, Any]:
    """Writes all splits of a source to `out`, a folder or URI; returns the manifest.

    Resumes unfinished work. Raises UserError if `out` cannot be used, and in the cases that `ingest` names.
    """
    filesystem, root = open_filesystem(out)
    with Lease(filesystem, root, f"--out {out}") as lease:
        folder = _out_folder(out, source, format)
        with writing(out):
            folder.claim()
        # `across_splits` keeps an id in one split only, so that no test image is also a training image.
        written = ingest(source, data, folder, seed, format=format, show=show, across_splits=True)
        manifest = manifest_of(source, folder, written, data, format)
        lease.check()
        write_text(filesystem, f"{root}/{MANIFEST}", json.dumps(manifest, indent=2) + "\n")
    return manifest


def require_out(data: DataConfig, source: Source, out: str, format: Format) -> None:
    """Raises UserError if the folder `out` cannot be written or has files other than shards of `source`."""
    require_writable(out, folder=True)
    if data.source == format and data.path is not None:  # otherwise the source would also read the new shards
        require_apart(data.path, *open_filesystem(out), "what is prepared", "--out")
    _out_folder(out, source, format)


def _out_folder(out: str, source: Source, format: Format) -> ShardFolder:
    """The folder for the shards. Raises UserError if it has other files, or shards of changed data files."""
    filesystem, root = open_filesystem(out)
    settings = settings_print(source, format)
    folder = ShardFolder(filesystem, root, f"{settings}/{source.stamp}", FORMATS[format][1])
    with writing(out):
        owner = folder.owner()
        if owner is None and not all(is_lease(path) for path, _ in list_files(filesystem, root)):
            raise UserError(f"--out {out} is not empty; take another --out, or delete what is there")
    if owner is not None and owner.partition("/")[0] != settings:
        raise UserError(f"--out {out} was prepared from another source or config; take another --out")
    if owner not in (None, folder.made_from):
        raise UserError(f"the files of data.source changed since --out {out} was begun; take another --out")
    return folder


STAGE = Stage(NAME, (), done, run, describe)
