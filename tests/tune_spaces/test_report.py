"""The report of a comparison: paired errors, tables of known rows; the test split opens once."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from pyarrow.fs import LocalFileSystem
from scipy.special import logsumexp

from npdraw_dist.config.load import build
from npdraw_dist.data.splits import SPLITS, unit_hash
from npdraw_dist.evaluate.protocol import images_in
from npdraw_dist.measure.paired import paired
from npdraw_dist.nn.likelihoods import binarized
from npdraw_dist.pipeline.data import run as run_data
from npdraw_dist.pipeline.inputs import SEEN
from npdraw_dist.pipeline.store import OPENINGS, Store
from npdraw_dist.system.errors import UserError
from npdraw_dist.training.feed import noise_seed
from tests.helpers.image_files import change_one, images
from tests.helpers.runs import Refused
from tests.helpers.tiny_baselines import KINDS, strokes, tiny_baseline
from tune_spaces import report
from tune_spaces.measured import CURVE, Entry, Measured, curve_of, flops, images_of, source_of
from tune_spaces.opening import Sweep, open_test_split, read_sweep, require_one_of_each
from tune_spaces.report_tables import ReportData, markdown, served, write_report

IDS = [f"mnist-test-{i:06d}" for i in range(40)]
SEARCH = {0.1: {"vae": [91.0, 95.0, 99.5], "flow": [92.0, 93.0]}}
FACTS = {"core_seconds": 240.0, "images": 90_000, "valid_nll": 88.0}


def fake(kind: str, seed: int, nll: NDArray[np.float64], role: str = "seed") -> Measured:
    """A measured run whose ELBO is 5 nats below minus its NLL."""
    leading = role == "seed" and seed == 1
    facts = FACTS | {"still_improving": True} if role == "longest" else FACTS
    entry = Entry(f"runs/c/seeds/{kind}-{seed}", kind, 0.1, seed, role, facts, leading)
    known = {"parameters": 1e5, "flops": 2e6, **FACTS, "frechet_distance": 2.0, "reconstruction": -80.0}
    known |= {"kl_whether": 3.0, "kl_what": 6.0, "kl_where": 0.0} if kind == "npdraw" else {"kl": 9.0}
    shown = np.random.default_rng(seed).random((3, 1, 28, 28), np.float32) if leading else None
    curve = {1: 95.0, 100: 90.0} if leading else {}
    return Measured(entry, IDS, nll, -nll - 5, known, curve, shown, shown)


def fabricated() -> list[Measured]:
    """Ours against a VAE that is 3 nats worse, a flow that is 2 better, and DRAW that is like it."""
    generator = np.random.default_rng(0)
    base = 90 + 10 * generator.standard_normal(len(IDS))  # some images are harder, for all kinds
    found = []
    for seed, drift in ((1, -0.1), (2, 0.0), (3, 0.1)):
        for kind, shift in (("npdraw", 0.0), ("vae", 3.0 + drift), ("flow", -2.0), ("draw", 0.0)):
            noise = generator.standard_normal(len(IDS)) * 0.1
            found.append(fake(kind, seed, base + shift + noise - noise.mean()))
    return [*found, fake("vae", 0, base + 1.0, "longest")]


def compared(
    measured: list[Measured] | None = None, served: int = 0, search: Any = None, references: Any = None
) -> ReportData:
    protocol = {"nll": "IWAE of 100"}
    given = {0.1: (3, FACTS["core_seconds"])}
    return ReportData(measured or fabricated(), search or {}, references or {}, protocol, given, served)


def test_verdicts_are_of_corrected_claims() -> None:
    comparison = compared()
    verdicts = {key[1:]: comparison.verdict(key) for key in comparison.differences}
    likelihoods = {kind: verdicts["nll_iwae", kind] for kind in ("vae", "flow", "draw")}
    assert likelihoods == {"vae": "better", "flow": "worse", "draw": "open"}
    assert (verdicts["elbo", "vae"], verdicts["elbo", "flow"]) == ("better", "worse")
    alone = compared([run for run in fabricated() if run.entry.seed == 1])
    assert {alone.verdict(key) for key in alone.differences} == {"open"}


def test_differences_are_ours_minus_the_other_kind() -> None:
    found = compared().differences
    means = {kind: found[0.1, "nll_iwae", kind].mean for kind in ("vae", "flow", "draw")}
    assert means == pytest.approx({"vae": -3.0, "flow": 2.0, "draw": 0.0})
    assert found[0.1, "nll_iwae", "vae"].se_seeds == pytest.approx(0.1 / math.sqrt(3))
    assert (found[0.1, "elbo", "vae"].mean, found[0.1, "elbo", "vae"].images) == (pytest.approx(3.0), 40)
    assert found[0.1, "frechet_distance", "vae"].images == 1  # a number of each run
    other = fabricated()
    other[1] = replace(other[1], ids=[*IDS[:-1], "another"])
    with pytest.raises(UserError, match="different images"):
        compared(other).differences  # noqa: B018


def test_a_variant_of_ours_is_another_model() -> None:
    ours = fabricated()[0]
    other = replace(ours, entry=replace(ours.entry, kind="npdraw-lstm"), nll_iwae=ours.nll_iwae + 1)
    found = compared([ours, other])
    assert found.kinds == ["npdraw", "npdraw-lstm"]
    assert found.differences[0.1, "nll_iwae", "npdraw-lstm"].mean == pytest.approx(-1)
    assert "| NP-DRAW, lstm | 1 |" in markdown(found)


def test_the_report_has_tables_of_kinds_differences_and_trials(tmp_path: Path) -> None:
    references = {"floor": {"frechet_distance": 0.05}, "ceiling": {"frechet_distance": 99.0}}
    out = tmp_path / "report"
    files = write_report(compared(None, 10, SEARCH, references), str(out))
    names = {Path(file).name for file in files}
    pictures = {"fractions.png", "differences.png", "samples-10.png"}
    assert names == pictures | {"report.md", "report.parquet", "differences.parquet"}
    assert all((out / name).stat().st_size > 1000 for name in names)
    text = (out / "report.md").read_text()
    mask = served(IDS, 10)
    least = sorted(IDS, key=lambda name: unit_hash(0, "evaluate", name))[:10]
    assert [name for name, used in zip(IDS, mask, strict=True) if used] == sorted(least)
    known = {(run.entry.kind, run.entry.seed): run.nll_iwae[~mask] for run in fabricated()}
    worse = [known["npdraw", seed] - known["flow", seed] for seed in (1, 2, 3)]
    zeros = dict.fromkeys(map(str, range(30)), 0.0)
    half = paired([(dict(zip(zeros, x, strict=True)), zeros) for x in worse]).half
    assert f"| VAE with flow prior | 3 | 🟥 {np.mean(worse):+.2f} ± {half:.2f} |" in text
    assert "| NP-DRAW | -80.00 ± 0.00 | 3.00 ± 0.00 | 6.00 ± 0.00 | 0.00 ± 0.00 |" in text
    assert "| VAE | 3 | 3 |" in text  # trials, seeds
    assert "NLL, served" in text
    assert "| floor: train against test |" in text
    assert "VAE, longest: still improving" in text
    measured = fabricated()
    failed = FACTS | {"still_improving": False, "failed": "longer/vae-0-x2"}
    measured[-1] = replace(measured[-1], entry=replace(measured[-1].entry, facts=failed))
    assert "VAE, longest: a longer training failed" in markdown(compared(measured))
    assert "| VAE | 91.00 | 95.00 | 99.50 | 88.00 ± 0.00 |" in text
    assert "| VAE with flow prior | 92.00 | 93.00 | failed | 88.00 ± 0.00 |" in text
    found = pq.read_table(out / "differences.parquet").to_pylist()
    row = next(row for row in found if row["kind"] == "vae")
    assert (row["measure"], row["kind"], row["seeds"], row["images"]) == ("nll_iwae", "vae", 3, 30)
    assert (row["verdict"], row["p_corrected"] >= 3 * row["p_value"]) == ("better", True)
    rows = pq.read_table(out / "report.parquet").to_pylist()
    assert len(rows) == 13
    run = fabricated()[1]
    row = next(row for row in rows if row["kind"] == "vae" and row["seed"] == 1)
    assert row["nll_served"] == pytest.approx(run.nll_iwae[mask].mean())
    assert row["nll_others"] == pytest.approx(run.nll_iwae[~mask].mean())
    assert (row["core_seconds"], row["parts_share"]) == (240.0, None)
    ours = next(row for row in rows if row["kind"] == "npdraw")
    assert ours["parts_share"] == pytest.approx(-9.0 / ours["elbo"])


def test_the_report_states_what_is_left_out_or_unequal() -> None:
    found = compared(served=20)
    row = found.row(found.measured[0])
    assert row["elbo_others"] == pytest.approx(-row["nll_others"] - 5)
    assert row["elbo_others"] != pytest.approx(row["elbo"])
    text = markdown(found)
    assert f"| {row['elbo_others']:.2f} ±" not in text  # a mean over seeds
    assert "| ELBO, others |" in text
    assert "leave out the 20 images that served" in text
    assert "Not at equal cost" not in text
    dear = [
        replace(run, numbers={**run.numbers, "core_seconds": 1.3 * run.numbers["core_seconds"]})
        if run.entry.kind == "vae"
        else run
        for run in fabricated()
        if (run.entry.kind, run.entry.seed) != ("flow", 3)
    ]
    text = markdown(compared(dear))
    assert f"Not at equal cost: of {FACTS['core_seconds']:g} core-seconds, VAE " in text
    assert "| 2 of 3 |" in text


def test_bits_per_dimension_are_reported_unless_data_are_binary(tmp_path: Path) -> None:
    write_report(compared(), str(tmp_path))
    assert "bits/dim" not in (tmp_path / "report.md").read_text()
    colour = [replace(run, numbers={**run.numbers, "dimensions": 3072.0}) for run in fabricated()]
    write_report(compared(colour), str(tmp_path))
    assert "bits/dim" in (tmp_path / "report.md").read_text()
    for row in pq.read_table(tmp_path / "report.parquet").to_pylist():
        assert row["bits_per_dim"] == pytest.approx(row["nll"] / (3072 * math.log(2)))


@pytest.fixture
def swept(tmp_path: Path) -> Path:
    """A comparison's folder: two kinds with a trial and two seeds each, none of which saw the test split."""
    kinds = ("npdraw", "vae")
    finals: list[dict[str, Any]] = [
        {"run": f"seeds/{kind}-seed-{seed}", "kind": kind, "seed": seed, "role": "seed", **FACTS}
        for seed in (1, 2)
        for kind in kinds
    ]
    plan: dict[str, Any] = {"fraction": 0.1, "seeds": 2, "core_seconds": 240.0, "finals": finals}
    plan["trials"] = {f"{kind}-0": {"kind": kind, "settings": {}} for kind in kinds}
    plan["winners"] = {kind: f"{kind}-0" for kind in kinds}
    folder = tmp_path / "c"
    for run in [*(f"trials/{name}" for name in plan["trials"]), *(final["run"] for final in finals)]:
        (folder / run).mkdir(parents=True)
        Store(LocalFileSystem(), str(folder / run)).write_json({"opened": []}, OPENINGS)
    (folder / "comparison.json").write_text(json.dumps(plan))
    return folder


def test_data_that_changed_since_the_training_are_not_scored(tmp_path: Path) -> None:
    images(tmp_path / "data", 20)
    data = {"source": "imagefolder", "path": str(tmp_path / "data"), "image_size": 28, "channels": 1}
    experiment = build({"data": data, "model": {"kind": "vae"}, "eval": {"split": "valid"}})
    store = Store.open(str(tmp_path), "run")
    store.claim(experiment)
    run_data(experiment, store)
    entry = Entry(str(tmp_path / "run"), "vae", 1.0, 0, "seed", FACTS)
    before = {split: images_of(entry, split) for split in SPLITS}
    assert sum(map(len, before.values())) == 20
    change_one(tmp_path / "data")
    for split in SEEN:  # as the run has read them
        assert images_of(entry, split).images.tobytes() == before[split].images.tobytes()
    for opened in (partial(source_of, entry, "test"), partial(source_of, entry, "train", 0.5)):
        with pytest.raises(
            UserError, match=r"the data of .*/run have changed since its training; put them back"
        ):
            opened()


def test_images_are_counted_by_reading_where_nothing_else_tells() -> None:
    shards = [SimpleNamespace(read=lambda: range(10))] * 9
    unknown: Any = SimpleNamespace(count=lambda split: None, shards=lambda split: shards)
    assert images_in(unknown, "test", 200) == 90
    assert 30 < images_in(unknown, "test", 30) < 90  # enough


def change(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Edits the plan of a comparison."""
    plan = json.loads((folder / "comparison.json").read_text())
    edit(plan)
    (folder / "comparison.json").write_text(json.dumps(plan))


def test_the_test_split_is_opened_once_and_in_pieces(swept: Path) -> None:
    sweep = read_sweep(str(swept))
    assert [entry.leading for entry in sweep.entries()] == [True, True, False, False]
    open_test_split([sweep], {"k": 100})
    for run in sweep.runs:
        assert [opening["by"] for opening in run.openings() or []] == ["report"]
    open_test_split([sweep], {"k": 100})  # the same one goes on
    assert all(len(run.openings() or []) == 1 for run in sweep.runs)
    with pytest.raises(UserError, match=r"another protocol \(k: 100 -> 50\)"):
        open_test_split([sweep], {"k": 50})
    sweep.runs[-1].record_opening("evaluate")  # after the comparison
    with pytest.raises(UserError, match="already opened, by evaluate"):
        open_test_split([sweep], {"k": 100})


def test_a_run_that_saw_the_test_split_cannot_be_compared(swept: Path) -> None:
    sweep = read_sweep(str(swept))
    for run in reversed(sweep.runs):
        run.record_opening("sample")
        with pytest.raises(UserError, match=f"the test split of {run.shown()} was already opened, by sample"):
            open_test_split([sweep], {})
    assert not (swept / "opened.json").exists()


def test_the_search_of_each_kind_is_read_with_the_best_trial_first(swept: Path) -> None:
    more: dict[str, Any] = {f"{kind}-1": {"kind": kind, "settings": {}} for kind in ("npdraw", "vae")}
    change(swept, lambda plan: plan["trials"].update(more))
    sweep = read_sweep(str(swept))
    with pytest.raises(UserError, match=r"results\.parquet is unreadable"):
        sweep.search()
    rows = [("vae-0", 92.5), ("npdraw-0", 90.0), ("vae-1", 91.5), ("npdraw-1", None)]
    table = pa.Table.from_pylist([{"trial": name, "valid_nll": nll} for name, nll in rows])
    pq.write_table(table, swept / "results.parquet")
    assert sweep.search() == {"npdraw": [90.0], "vae": [91.5, 92.5]}


def test_sweeps_of_one_report_have_other_fractions_of_the_same_data(swept: Path, tmp_path: Path) -> None:
    def read(name: str, fraction: float, stamp: str) -> Sweep:
        folder = Path(shutil.copytree(swept, tmp_path / name))
        change(folder, lambda plan: plan.update(fraction=fraction))
        sweep = read_sweep(str(folder))
        for run in sweep.runs:
            run.write_json({"stamp": stamp}, "data", "manifest.json")
        return sweep

    small = read("small", 0.1, "a")
    require_one_of_each([small, read("large", 1.0, "a")])
    with pytest.raises(UserError, match=r"same fraction \(0\.1, 0\.1\)"):
        require_one_of_each([small, small])
    with pytest.raises(UserError, match=r"has other data than"):
        require_one_of_each([small, read("other", 1.0, "b")])


def test_an_unfinished_comparison_is_refused(swept: Path, refused: Refused) -> None:
    change(swept, lambda plan: plan.pop("finals"))
    assert "has not finished" in refused(report.main, "--sweeps", str(swept), "--out", str(swept / "out"))


def test_the_curve_is_the_bound_of_the_first_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_baseline("vae")
    images = torch.randint(0, 256, (3, 1, 6, 6), dtype=torch.uint8)
    monkeypatch.setattr("tune_spaces.measured.KS", (1, 40, 130))
    found = curve_of(model, images, 0)
    assert list(found) == [1, 40, 130]
    generator = torch.Generator().manual_seed(noise_seed(0, CURVE))
    x = binarized(images, model.spec.binarize, generator)
    log_w = torch.cat([model.importance(x, k, generator).log_w for k in (1, 39, 50, 40)]).double().numpy()
    for k, nll in found.items():
        assert nll == pytest.approx(-(logsumexp(log_w[:k], 0) - math.log(k)).mean())


@pytest.mark.parametrize("kind", KINDS)
def test_the_operations_of_every_kind_are_counted(kind: str) -> None:
    model = tiny_baseline(kind)
    trained = [parameter.requires_grad for parameter in model.parameters()]
    assert flops(model, strokes(1)) > 0
    assert [parameter.requires_grad for parameter in model.parameters()] == trained
