"""`npdraw evaluate` on Ray gives the numbers of one process."""

import json
import shutil
from pathlib import Path

import pytest

from npdraw_dist.evaluate import __main__ as evaluate

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_one_and_two_actors_give_the_numbers_of_this_process(
    run_in_process: Path, local_ray: None, tmp_path: Path
) -> None:
    found, run = [], shutil.copytree(run_in_process, tmp_path / "run")
    measured = ["--k", "6", "--images", "100", "--extractor", "tests.tune_spaces.test_report_command:Pixels"]
    for actors, workers in ((1, "0"), (1, "1"), (2, "2")):
        flags = ["--out", str(tmp_path / "out.json"), "--scale.num_workers", workers]
        evaluate.main(["--model", str(run), *measured, *flags])
        result = json.loads((tmp_path / "out.json").read_text())
        assert result.pop("made_by")["actors"] == actors
        found.append(result)
    assert found[0] == found[1] == found[2]
