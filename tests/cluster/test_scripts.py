"""submit.sh and slurm.sh, run with stubs in place of Ray and Slurm."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
SCRIPTS = ["submit.sh", "slurm.sh"]


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_sound(name: str) -> None:
    script = CLUSTER / name
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", script], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", script], check=True)


@pytest.fixture
def stubs(tmp_path: Path) -> dict[str, str]:
    """An environment whose ray, srun and scontrol print what they are given instead of doing it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, body in {
        "ray": 'if [ "$1" = get-auth-token ]; then echo SECRET; else echo "mode=$RAY_AUTH_MODE"; fi\n'
        "printf '%s\\n' \"$@\"",
        "srun": 'case "$*" in *hostname*) echo "10.0.0.5 172.17.0.1 ";; *) printf "%s\\n" "$@";; esac',
        "scontrol": "printf 'node1\\nnode2\\n'",
    }.items():
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)
    home = tmp_path / "home"
    (home / ".ray").mkdir(parents=True)
    (home / ".ray" / "auth_token").write_text("SECRET")
    return {"PATH": f"{folder}:{os.environ['PATH']}", "HOME": str(home)}


def run(script: str, *argv: str, env: dict[str, str], cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", CLUSTER / script, *argv], env=env, cwd=cwd, capture_output=True, text=True, timeout=30
    )


def test_submit_hands_the_working_copy_and_all_flags_to_ray(stubs: dict[str, str], tmp_path: Path) -> None:
    argv = ["--storage", "s3://b/runs", "--address", "http://127.0.0.1:9", "--", "--preset", "mnist"]
    done = run("submit.sh", *argv, "--name", "two words", env=stubs, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        *("mode=token", "job", "submit", "--address", "http://127.0.0.1:9", "--working-dir", str(ROOT)),
        *("--runtime-env", str(CLUSTER / "runtime_env.yaml"), "--", "python", "-m", "npdraw_dist.train"),
        *("--storage", "s3://b/runs", "--preset", "mnist", "--name", "two words"),
    ]


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_module_named_first_runs_instead(script: str, stubs: dict[str, str], tmp_path: Path) -> None:
    slurm = {"SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_NUM_NODES": "2", "SLURM_CPUS_PER_TASK": "8"}
    own = ["--storage", "/s"]
    sweep_of = ["tune_spaces.sweep", "--space", "smoke"]
    argv = [*own, "--", *sweep_of] if script == "submit.sh" else [*sweep_of, *own]
    done = run(script, *argv, env={**stubs, **slurm}, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    words = done.stdout.splitlines()
    after = words[words.index("python") :]
    assert after[:3] == ["python", "-m", "tune_spaces.sweep"]
    assert sorted(after[3:]) == sorted(["--space", "smoke", *own])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--", "--preset", "mnist"], "--storage is missing"),
        (["--storage", "runs", "--"], "--storage runs is relative"),
        (["--storage"], "--storage needs a value"),
        (["--preset", "mnist"], "unknown argument --preset"),
    ],
)
def test_submit_refuses_in_one_line(
    argv: list[str], message: str, stubs: dict[str, str], tmp_path: Path
) -> None:
    done = run("submit.sh", *argv, env=stubs, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(rf"error: {message}[^\n]*\n", done.stderr)


def test_submit_names_what_is_missing_where_there_is_no_token(stubs: dict[str, str], tmp_path: Path) -> None:
    (Path(stubs["HOME"]) / ".ray" / "auth_token").unlink()
    done = run("submit.sh", "--storage", "/shared", "--", env=stubs, cwd=tmp_path)
    assert done.returncode == 2
    assert re.fullmatch(r"error: no token: [^\n]*ray get-auth-token --generate\n", done.stderr)
    stubs["RAY_AUTH_TOKEN"] = "SECRET"
    given = run("submit.sh", "--storage", "/s", "--", env=stubs, cwd=tmp_path)
    assert given.returncode == 0
    assert "SECRET" not in given.stdout + given.stderr


def test_slurm_starts_one_cluster_over_all_nodes(stubs: dict[str, str], tmp_path: Path) -> None:
    slurm = {"SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_NUM_NODES": "2", "SLURM_CPUS_PER_TASK": "8"}
    env = {**stubs, **slurm, "SLURM_GPUS_ON_NODE": "1"}
    done = run("slurm.sh", "--preset", "mnist", "--name", "m", env=env, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "SECRET" not in done.stdout
    assert done.stdout.splitlines() == [
        *("ray", "symmetric-run", "--address", "10.0.0.5:6379", "--min-nodes", "2", "--num-cpus", "8"),
        *("--num-gpus", "1", "--dashboard-host", "127.0.0.1", "--", "env", "RAY_ADDRESS=10.0.0.5:6379"),
        *("python", "-m", "npdraw_dist.train", "--preset", "mnist", "--name", "m"),
    ]
