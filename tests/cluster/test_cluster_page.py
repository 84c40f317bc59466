"""docs/cluster.md: its commands are sound, and the files that they name exist."""

import json
import re
import subprocess

import pytest

from tests.cluster.test_cluster_files import ROOT

PAGE = (ROOT / "docs" / "cluster.md").read_text()
BLOCKS = re.findall(r"^ *```(?:bash|sh)\n(.*?)^ *```", PAGE, re.M | re.S)


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_every_block_of_commands_is_sound_bash(block: str) -> None:
    done = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), block


def test_the_json_in_commands_is_json() -> None:
    found = [text for text in re.findall(r"'(\{[^']*\})'", "\n".join(BLOCKS)) if text.startswith('{"')]
    assert len(found) == 3  # trust, policy, pod
    for text in found:
        json.loads(text)


def test_the_files_that_commands_name_exist() -> None:
    named = set(re.findall(r"\bcluster/[\w.]+", "\n".join(BLOCKS)))
    assert len(named) > 8
    assert [name for name in named if not (ROOT / name).exists()] == []
