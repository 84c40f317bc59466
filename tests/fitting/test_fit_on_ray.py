"""`npdraw_dist.fit` on Ray."""

from pathlib import Path
from typing import Any

import pytest

import npdraw_dist
from npdraw_dist import NPDraw
from npdraw_dist.config.prepared import MANIFEST
from npdraw_dist.config.schema import Experiment
from npdraw_dist.fitting import fit, fit_images
from npdraw_dist.pipeline import run as pipeline
from npdraw_dist.pipeline.store import Store
from npdraw_dist.system.errors import UserError
from tests.helpers.in_process import Stopped
from tests.helpers.tiny_fit import SMALL, a_callback_ends, strokes

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def data_alone(storage: Path, monkeypatch: pytest.MonkeyPatch, images: Any) -> Store:
    """Another run of `fit`, of which only the stage `data` is done."""

    def start(experiment: Experiment, root: str, name: str, *_: Any, **options: Any) -> None:
        pipeline.start(experiment, root, name, ["data"], False, **options)
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(fit, "start", start)
        with pytest.raises(Stopped):
            npdraw_dist.fit(images, **SMALL, name="again", storage=storage)
    return Store.open(str(storage), "again")


@pytest.mark.usefixtures("local_ray")
def test_a_ray_dataset_stays_on_its_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Some rows decide the settings; the others never come to this process."""
    from ray.data import Dataset, from_items

    rows, came, real = [{"image": image, "label": 1} for image in strokes()], list[Any](), Dataset.iter_rows

    def counted(dataset: Any, *arguments: Any, **options: Any) -> Any:
        for row in real(dataset, *arguments, **options):
            came.extend([row] if "image" in row else [])  # the pipeline has data sets of its own
            yield row

    monkeypatch.setattr(Dataset, "iter_rows", counted)
    monkeypatch.setattr(fit_images, "SEEN", 20)
    where: dict[str, Any] = {"name": "bars", "storage": str(tmp_path)}
    model = npdraw_dist.fit(from_items(rows), **SMALL, **where)
    assert 0 < len(came) <= 20
    assert isinstance(model, NPDraw)
    assert model.draw(2, seed=0).images.shape == (2, 1, 12, 12)
    assert "60 grey images of 12x12" in capsys.readouterr().out
    store = Store.open(str(tmp_path), "bars")
    assert sum(len(store.parses(split)) for split in ("train", "valid")) == 60
    assert [path.name for path in tmp_path.iterdir()] == ["bars"]
    assert not store.has("given")  # what the cluster wrote, from which the stage `data` read
    npdraw_dist.fit(from_items(rows), **SMALL, **where)
    assert "all done" in capsys.readouterr().out
    again = data_alone(tmp_path, monkeypatch, from_items(rows))
    digests = [run.read_json("data", MANIFEST)["digests"] for run in (store, again)]
    assert digests[0] == digests[1]  # of the ids and images of each split
    for others, valid in ((rows[:50], None), (rows[::-1], None), (rows, strokes()[:8])):
        with pytest.raises(UserError, match="differ from those that it has read"):
            npdraw_dist.fit(from_items(others), valid=valid, **SMALL, **where)
    with pytest.raises(UserError, match="has a column `label`"):
        npdraw_dist.fit(from_items(rows), labels=[1] * 60)


def test_what_a_callback_raises_ends_the_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a_callback_ends(capsys, name="bars", storage=str(tmp_path), num_workers=1)
