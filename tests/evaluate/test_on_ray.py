"""`npdraw evaluate` on Ray gives the numbers of one process."""

import json
from pathlib import Path

import pytest

from npdraw_dist.evaluate import __main__ as evaluate

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_one_and_two_actors_give_the_numbers_of_this_process(
    local_ray: None, run_here: Path, tmp_path: Path
) -> None:
    found = []
    for actors, workers in ((1, "0"), (1, "1"), (2, "2")):
        out = tmp_path / f"{workers}.json"
        measured = ["--k", "6", "--images", "100", "--extractor", "tests.evaluate.test_compare_sweeps:Pixels"]
        evaluate.main(
            ["--model", str(run_here), *measured, "--scale.num_workers", workers, "--out", str(out)]
        )
        result = json.loads(out.read_text())
        assert result.pop("made_by")["actors"] == actors
        found.append(result)
    assert found[0] == found[1] == found[2]
