"""docs/cluster.md: its commands are sound, and what it says goes wrong is what the programs say."""

import ast
import json
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

from tests.cluster.test_cluster_files import CLUSTER, ROOT, read

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


def test_every_way_begins_and_ends() -> None:
    """What was started with `ray up` is taken down, what was applied is deleted."""
    for name in ("aws", "gcp", "local"):
        assert f"ray up --yes cluster/{name}.yaml" in PAGE
        assert f"ray down --yes cluster/{name}.yaml" in PAGE
    for name in ("rayjob", "raycluster", "storage"):
        assert f"kubectl apply -f cluster/{name}.yaml" in PAGE
        assert f"kubectl delete -f cluster/{name}.yaml" in PAGE


@pytest.mark.parametrize("name", ["aws", "gcp"])
def test_the_prices_are_of_the_machines_in_the_files(name: str) -> None:
    (row,) = re.findall(rf"^\| `{name}\.yaml` \|.*$", PAGE, re.M)
    for values in read(name)["available_node_types"].values():
        node = values["node_config"]
        assert (node.get("InstanceType") or node["machineType"]) in row


def test_the_example_of_the_costs_adds_up() -> None:
    example = PAGE.split("**Example.**")[1].split("\n\n")[0]
    hours = [
        float(n)
        for n in re.findall(
            r"([\d.]+) \(nodes\) \+ ([\d.]+) .*? \+ ([\d.]+) \+ ([\d.]+) =", example.replace("\n", " ")
        )[0]
    ]
    assert sum(hours) == pytest.approx(2.2)
    assert "0.38 + 2 × 1.21 + 3 × 0.02 = 2.86" in example
    assert pytest.approx(6.30, abs=0.01) == 2.2 * 2.86
    assert pytest.approx(hours[2], abs=0.05) == 600_000 / 410 / 3600
    assert pytest.approx(hours[3], abs=0.05) == 1_200_000 / 235 / 3600


@cache
def texts() -> tuple[str, ...]:
    """Every string of the program; `…` for what an f-string fills in."""
    found = []
    for room in ("npdraw_dist", "tune_spaces"):
        for path in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
                elif isinstance(node, ast.JoinedStr):
                    parts = [p.value if isinstance(p, ast.Constant) else "…" for p in node.values]
                    found.append("".join(map(str, parts)))
    return tuple(found)


def symptoms() -> list[str]:
    """The lines of ours in the first column of the table."""
    table = PAGE.split("\n## What goes wrong\n")[1]
    cells = re.findall(r"^\| (.*?) \|", table, re.M)[1:]
    return [span for cell in cells for span in re.findall(r"`([^`]+)`", cell) if "…" in span]


def test_there_are_lines_of_ours() -> None:
    assert len(symptoms()) >= 10


@pytest.mark.parametrize("line", symptoms())
def test_what_goes_wrong_is_what_the_programs_say(line: str) -> None:
    pieces = [piece.strip() for piece in line.removeprefix("error: ").split("…")]
    for piece in (piece for piece in pieces if len(piece) > 3):
        assert any(piece in text for text in texts()), piece


def test_what_slurm_says_is_in_its_script() -> None:
    script = (CLUSTER / "slurm.sh").read_text()
    rows = re.findall(r"^\| Slurm: `([^`]+)`", PAGE, re.M)
    assert len(rows) == 2
    assert [row for row in rows if row.removeprefix("error: ") not in script] == []


def test_the_readme_of_the_folder_leads_to_the_page_and_does_not_repeat_it() -> None:
    text = (CLUSTER / "README.md").read_text()
    assert "](../docs/cluster.md)" in text
    assert "](docs/cluster.md)" in (ROOT / "README.md").read_text()
    for line in (line.strip() for block in BLOCKS for line in block.splitlines()):
        if line.startswith(("aws ", "gcloud ", "helm ")):
            assert line not in text
    assert Path("docs/cluster.md").name in text
