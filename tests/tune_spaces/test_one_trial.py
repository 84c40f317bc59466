"""A real sweep of one tiny trial, of a kind with few stages."""

from pathlib import Path

import pytest
import ray

from npdraw_dist import sample
from npdraw_dist.config.load import resolve, with_changes
from npdraw_dist.config.schema import ScaleConfig
from npdraw_dist.data import ingest
from npdraw_dist.distributed.start import start_ray
from npdraw_dist.pipeline import data
from tests.helpers.in_process import map_in_process
from tests.helpers.spaces import plan_in
from tests.tune_spaces.test_sweep import built, rows_of
from tune_spaces import sweep
from tune_spaces.driver import claim
from tune_spaces.shared_stages import SharedStage

pytestmark = pytest.mark.ray

# Most of a trial's seconds start processes of Ray, some three for each stage. A VAE has no bank and no prior,
# and its images are read before: four are left, of the trial, Ray Train, its worker and a mailbox.
ONE_TRIAL = """
from tune_spaces.space import Choice, Space

TINY = {
    "model.kind": "vae",
    "data.fraction": 0.05,
    "vae.images": 128,
    "baseline.width": 16,
    "baseline.depth": 1,
    "baseline.latents": 4,
    "eval.images": 8,
    "eval.k": 2,
    "train.batch_size": 128,
    "train.micro_batch": 64,
    "train.eval_every_images": 128,
    "scale.num_workers": 1,
    "scale.cpus_per_worker": 1,
}
SPACE = Space({"baseline.width": Choice((16,))}, samples=1, budgets={"digits": TINY})
"""


def test_one_trial_from_its_space_to_the_best_config(
    local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a sweep that was interrupted once the images of its trials were there: this process made them."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    file = tmp_path / "one.py"
    file.write_text(ONE_TRIAL)
    own = ["--space", str(file), "--storage", str(tmp_path), "--name", "s", "--scheduler", "none"]
    plan = claim(plan_in(tmp_path, str(file)), sweep.parse(own)[0])
    experiment = plan.trial({}).experiment
    monkeypatch.setattr(ingest, "map_items", map_in_process)
    data.run(experiment, SharedStage(plan.cache, experiment, "data").store)
    try:
        sweep.main(own)
    except BaseException:  # such as a time-out: the workers of the trial would keep the CPUs
        ray.shutdown()
        start_ray(ScaleConfig(), object_store_mb=128)
        raise
    (row,) = rows_of(tmp_path)
    assert (row["status"], row["baseline.width"]) == ("finished", 16)
    assert min(row["valid_nll"], row["bits_per_dim"], row["seconds"]) > 0
    assert built(tmp_path / "s") == ["data"]
    trial = tmp_path / "s" / "trials" / row["trial"]
    best = resolve("mnist", tmp_path / "s" / "best.yaml", {})
    kept = resolve("mnist", trial / "config.yaml", {})
    assert (best.model.kind, best.baseline.width) == ("vae", 16)
    # The sweep closed the test split; training its best config opens it.
    assert (kept.eval.split, best.eval.split) == ("valid", "test")
    closed = with_changes(best, {"eval": {"split": "valid"}})
    assert closed.model_copy(update={"scale": kept.scale}) == kept
    sample.main(["--model", str(trial / "model"), "--n", "4", "--out", str(tmp_path)])
    assert (tmp_path / "samples.png").is_file()
