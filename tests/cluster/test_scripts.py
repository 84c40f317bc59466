"""The scripts, run with stubs in place of Ray, Slurm and the commands of the project."""

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.waiting import until

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
SCRIPTS = ["submit.sh", "slurm.sh"]


@pytest.mark.parametrize("name", [*SCRIPTS, "first_gpu.sh"])
def test_scripts_are_sound(name: str) -> None:
    script = CLUSTER / name
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", script], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", script], check=True)


# As of Slurm 22.05: a step has the CPUs of its own option or of SRUN_CPUS_PER_TASK, else one. With $WORK it
# works until somebody ends it.
SRUN = """
case "$*" in
  *hostname*) echo "10.0.0.5 172.17.0.1 "; exit ;;
esac
echo "cpus=${SRUN_CPUS_PER_TASK:-1}"
printf "%s\\n" "$@"
[ -z "${WORK:-}" ] || { echo $$ > "$WORK/step"; while [ ! -e "$WORK/end" ]; do sleep 0.05; done; exit 3; }
"""
# `requeue` ends the job's steps, as Slurm does; $REFUSED: the job may not be requeued.
SCONTROL = """
if [ "$1" = requeue ]; then
  [ -z "${REFUSED:-}" ] || exit 1
  echo "$*" >> "$WORK/requeued"
  kill "$(cat "$WORK/step")"
else
  printf "node1\\nnode2\\n"
fi
"""
SLURM = {
    "SLURM_JOB_ID": "17",
    "SLURM_JOB_NODELIST": "node[1-2]",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_CPUS_PER_TASK": "8",
    "SLURM_MEM_PER_NODE": "32768",  # MiB
}


@pytest.fixture
def stubs(tmp_path: Path) -> Iterator[dict[str, str]]:
    """An environment whose ray, srun and scontrol print what they are given instead of doing it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, body in {
        "ray": 'if [ "$1" = get-auth-token ]; then echo SECRET; else echo "mode=$RAY_AUTH_MODE"; fi\n'
        "printf '%s\\n' \"$@\"",
        "srun": SRUN,
        "scontrol": SCONTROL,
        "df": "echo Avail; echo $((16 << 30))",
    }.items():
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)
    home = tmp_path / "home"
    (home / ".ray").mkdir(parents=True)
    (home / ".ray" / "auth_token").write_text("SECRET")
    yield {"PATH": f"{folder}:{os.environ['PATH']}", "HOME": str(home)}
    (tmp_path / "end").touch()  # ends a step whose test failed


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
    own = ["--storage", "/s"]
    sweep_of = ["tune_spaces.sweep", "--space", "smoke"]
    argv = [*own, "--", *sweep_of] if script == "submit.sh" else [*sweep_of, *own]
    done = run(script, *argv, env={**stubs, **SLURM}, cwd=tmp_path)
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


STEP = [
    *("ray", "symmetric-run", "--address", "10.0.0.5:6379", "--min-nodes", "2", "--num-cpus", "8"),
    *(
        "--num-gpus",
        "1",
        "--object-store-memory",
        str(32 * 1024**3 * 3 // 10),
        "--dashboard-host",
        "127.0.0.1",
    ),
    *("--", "env", "RAY_ADDRESS=10.0.0.5:6379", "python", "-m", "npdraw_dist.train"),
    *("--preset", "mnist", "--name", "m"),
]
TRAIN = ["--preset", "mnist", "--name", "m"]


def test_slurm_starts_one_cluster_over_all_nodes(stubs: dict[str, str], tmp_path: Path) -> None:
    """With all CPUs of the task, which srun no longer takes from sbatch."""
    env = {**stubs, **SLURM, "SLURM_GPUS_ON_NODE": "1"}
    done = run("slurm.sh", *TRAIN, env=env, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "SECRET" not in done.stdout
    assert done.stdout.splitlines() == ["cpus=8", *STEP]


@pytest.mark.parametrize(
    ("megabytes", "store"), [("102400", 16 * 1024**3 * 95 // 100), ("0", None), ("", None)]
)
def test_slurms_object_store_fits_into_shared_memory(
    megabytes: str, store: int | None, stubs: dict[str, str], tmp_path: Path
) -> None:
    """At most what /dev/shm holds; Ray's own choice if the job has no limit of memory."""
    env = {**stubs, **SLURM, "SLURM_MEM_PER_NODE": megabytes}
    words = run("slurm.sh", *TRAIN, env=env, cwd=tmp_path).stdout.splitlines()
    found = words[words.index("--object-store-memory") + 1] if "--object-store-memory" in words else None
    assert found == (None if store is None else str(store))


class Job:
    """slurm.sh at work: its step runs until the file `end` is there, then it fails with status 3."""

    def __init__(self, env: dict[str, str], work: Path) -> None:
        self.work = work
        for name in ("step", "end"):
            (work / name).unlink(missing_ok=True)
        self.process = subprocess.Popen(
            ["bash", CLUSTER / "slurm.sh", *TRAIN],
            env={**env, **SLURM, "WORK": str(work), "SLURM_GPUS_ON_NODE": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        until((work / "step").exists, 30)

    def warn(self) -> None:
        """What Slurm does near the time limit, to the script alone."""
        self.process.send_signal(getattr(signal, f"SIG{warning()[0]}"))

    def end(self) -> tuple[int, list[str], str]:
        """Its status, the words of its step, and what it said."""
        out, err = self.process.communicate(timeout=30)
        return self.process.returncode, out.splitlines(), err


def warning() -> tuple[str, int]:
    """The signal that slurm.sh asks for, and the seconds before the limit."""
    text = (CLUSTER / "slurm.sh").read_text()
    (found,) = re.findall(r"^#SBATCH --signal=B:(\w+)@(\d+)$", text, re.M)
    return found[0], int(found[1])


def test_slurm_warns_the_script_in_time_and_may_requeue_it() -> None:
    text = (CLUSTER / "slurm.sh").read_text()
    assert 60 <= warning()[1] <= 600
    assert "\n#SBATCH --requeue\n" in text
    assert "\n#SBATCH --open-mode=append\n" in text


def test_near_its_time_limit_the_job_is_requeued_and_the_same_command_resumes(
    stubs: dict[str, str], tmp_path: Path
) -> None:
    job = Job(stubs, tmp_path)
    job.warn()
    status, words, said = job.end()
    assert (tmp_path / "requeued").read_text() == "requeue 17\n"
    assert status == 128 + signal.SIGTERM  # as Slurm ended the step
    assert "job 17 is requeued, and resumes from its last checkpoint" in said
    again = Job({**stubs, "SLURM_RESTART_COUNT": "1"}, tmp_path)
    (tmp_path / "end").touch()
    assert again.end()[:2] == (3, words)
    assert words == ["cpus=8", *STEP]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"REFUSED": "1"}, "the job cannot be requeued: submit the same command to go on"),
        ({"SLURM_RESTART_COUNT": "100"}, "after 100 requeues: submit the same command to go on"),
    ],
)
def test_a_job_that_is_not_requeued_works_to_its_end(
    change: dict[str, str], said: str, stubs: dict[str, str], tmp_path: Path
) -> None:
    job = Job({**stubs, **change}, tmp_path)
    for pause_s in (0, 0, 0.001, 0.003, 0.01, 0.03, 0.2):  # while it waits, and while it answers
        job.warn()
        time.sleep(pause_s)
        assert job.process.poll() is None
    (tmp_path / "end").touch()
    status, _, err = job.end()
    assert status == 3
    assert said in err
    assert not (tmp_path / "requeued").exists()


def test_the_script_for_a_new_gpu_goes_on_after_a_step_that_fails(tmp_path: Path) -> None:
    """It ends with an error then, and without a GPU it measures nothing."""
    stub = tmp_path / "python"
    stub.write_text(
        '#!/bin/sh\necho "$*"\n'
        'case "$*" in *get_device_properties*) exit ${NO_GPU:-0} ;; *pytest*) exit 1 ;; esac\n'
    )
    stub.chmod(0o755)
    env = {**os.environ, "PYTHON": str(stub)}
    out = tmp_path / "out"
    done = run("first_gpu.sh", "digits", "out", env=env, cwd=tmp_path)
    assert (done.returncode, sorted(path.stem for path in out.glob("*.log"))) == (
        1,
        ["bench", "machine", "studio", "tests", "train"],
    )
    assert done.stderr.startswith("tests failed: ")
    assert f"--storage {out}/runs --name first_gpu" in (out / "train.log").read_text()
    done = run("first_gpu.sh", "digits", "none", env={**env, "NO_GPU": "1"}, cwd=tmp_path)
    assert (done.returncode, [path.stem for path in (tmp_path / "none").iterdir()]) == (1, ["machine"])
    assert run("first_gpu.sh", env=env, cwd=tmp_path).returncode == 2
