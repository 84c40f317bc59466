"""The scripts, run with stubs in place of Ray, Slurm and the commands of the project."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.helpers.processes import until

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"

# As of Slurm 22.05: a step has the CPUs of its own option or of SRUN_CPUS_PER_TASK, else one. With $WORK it
# works until somebody ends it.
SRUN = """
case "$*" in
  *hostname*) echo "10.0.0.5 172.17.0.1 "; exit ;;
esac
echo "cpus=${SRUN_CPUS_PER_TASK:-1}"
printf "%s\\n" "$@"
[ -n "${IDLE:-}" ] || touch "$TMPDIR/npdraw-17"
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
STUBS = {
    "ray": 'if [ "$1" = get-auth-token ]; then echo SECRET; else echo "mode=$RAY_AUTH_MODE"; fi\n'
    "printf '%s\\n' \"$@\"",
    "srun": SRUN,
    "scontrol": SCONTROL,
    "df": "echo Avail; echo $((16 << 30))",
}
SLURM = {
    "SLURM_JOB_ID": "17",
    "SLURM_JOB_NODELIST": "node[1-2]",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_CPUS_PER_TASK": "8",
    "SLURM_MEM_PER_NODE": "32768",  # MiB
    "SLURM_GPUS_ON_NODE": "1",
}
TRAIN = ["--preset", "mnist", "--name", "m"]
STEP = [
    *("ray", "symmetric-run", "--address", "10.0.0.5:6379", "--min-nodes", "2", "--num-cpus", "8"),
    *("--num-gpus", "1", "--object-store-memory", str(32 * 1024**3 * 3 // 10)),
    *("--dashboard-host", "127.0.0.1", "--", "sh", "-c", 'touch "$0" && exec "$@"', "BEGUN"),
    *("env", "RAY_ADDRESS=10.0.0.5:6379"),
    *("python", "-m", "npdraw_dist.train", *TRAIN),
]


@dataclass
class Shell:
    """An environment whose ray, srun and scontrol print their arguments and do nothing else."""

    folder: Path
    env: dict[str, str]

    def run(self, script: str, *argv: str, **more: str) -> subprocess.CompletedProcess[str]:
        command, env = [str(CLUSTER / script), *argv], {**self.env, **more}
        return subprocess.run(
            command, env=env, cwd=self.folder, capture_output=True, text=True, timeout=30, check=False
        )

    def job(self, **more: str) -> "subprocess.Popen[str]":
        """slurm.sh at work: its step runs until the file `end` is there, then it fails with status 3."""
        for name in ("step", "end"):
            (self.folder / name).unlink(missing_ok=True)
        command, env = (
            ["bash", str(CLUSTER / "slurm.sh"), *TRAIN],
            {**self.env, **more, "WORK": str(self.folder)},
        )
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, env=env, stdout=pipe, stderr=pipe, text=True)
        until((self.folder / "step").exists, 30)
        return process


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    folder, home = tmp_path / "bin", tmp_path / "home"
    folder.mkdir()
    for name, body in STUBS.items():
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)
    (home / ".ray").mkdir(parents=True)
    (home / ".ray" / "auth_token").write_text("SECRET")
    yield Shell(
        tmp_path,
        {**SLURM, "PATH": f"{folder}:{os.environ['PATH']}", "HOME": str(home), "TMPDIR": str(tmp_path)},
    )
    (tmp_path / "end").touch()  # ends a step whose test failed


def test_submit_hands_the_working_copy_and_all_flags_to_ray(shell: Shell) -> None:
    argv = ["--storage", "s3://b/runs", "--address", "http://127.0.0.1:9", "--", "--preset", "mnist"]
    done = shell.run("submit.sh", *argv, "--name", "two words")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        *("mode=token", "job", "submit", "--address", "http://127.0.0.1:9", "--working-dir", str(ROOT)),
        *("--runtime-env", str(CLUSTER / "runtime_env.yaml"), "--", "python", "-m", "npdraw_dist.train"),
        *("--storage", "s3://b/runs", "--preset", "mnist", "--name", "two words"),
    ]


@pytest.mark.parametrize("script", ["submit.sh", "slurm.sh"])
def test_a_module_named_first_runs_instead(script: str, shell: Shell) -> None:
    own, sweep_of = ["--storage", "/s"], ["tune_spaces.sweep", "--space", "smoke"]
    done = shell.run(script, *([*own, "--", *sweep_of] if script == "submit.sh" else [*sweep_of, *own]))
    assert (done.returncode, done.stderr) == (0, "")
    words = done.stdout.splitlines()
    after = words[words.index("python") :]
    assert after[:3] == ["python", "-m", "tune_spaces.sweep"]
    assert sorted(after[3:]) == sorted(["--space", "smoke", *own])


def test_a_command_without_runs_of_its_own_gets_no_storage(shell: Shell) -> None:
    done = shell.run("submit.sh", "--", "npdraw_dist.evaluate", "--model", "s3://b/m")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-5:] == ["python", "-m", "npdraw_dist.evaluate", "--model", "s3://b/m"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--", "--preset", "mnist"], "--storage is missing"),
        (["--storage", "runs", "--"], "--storage runs is relative"),
        (["--", "tune_spaces.sweep"], "--storage is missing"),
        (["--storage", "/s", "--", "npdraw_dist.evaluate"], "npdraw_dist.evaluate takes no --storage"),
        (["--preset", "mnist"], "unknown argument --preset"),
    ],
)
def test_submit_refuses_in_one_line(argv: list[str], message: str, shell: Shell) -> None:
    done = shell.run("submit.sh", *argv)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(rf"error: {message}[^\n]*\n", done.stderr)


def test_submit_needs_a_token_and_does_not_show_it(shell: Shell) -> None:
    (shell.folder / "home" / ".ray" / "auth_token").unlink()
    done = shell.run("submit.sh", "--storage", "/shared", "--")
    assert done.returncode == 2
    assert re.fullmatch(r"error: no token: [^\n]*\n", done.stderr)
    given = shell.run("submit.sh", "--storage", "/shared", "--", RAY_AUTH_TOKEN="SECRET")
    assert given.returncode == 0
    assert "SECRET" not in given.stdout + given.stderr


@pytest.mark.parametrize(
    ("megabytes", "store"),
    [("32768", 32 * 1024**3 * 3 // 10), ("102400", 16 * 1024**3 * 95 // 100), ("0", None)],
)
def test_slurm_starts_one_cluster_over_all_nodes(megabytes: str, store: int | None, shell: Shell) -> None:
    """It has all CPUs of the task, and an object store that fits /dev/shm; Ray sizes the store of a job
    without a limit of memory."""
    done = shell.run("slurm.sh", *TRAIN, SLURM_MEM_PER_NODE=megabytes)
    assert (done.returncode, done.stderr) == (0, "")
    assert "SECRET" not in done.stdout
    option = STEP.index("--object-store-memory")
    wanted = [] if store is None else ["--object-store-memory", str(store)]
    assert lines(done.stdout, shell) == ["cpus=8", *STEP[:option], *wanted, *STEP[option + 2 :]]
    assert list(shell.folder.glob("npdraw-*")) == []


def lines(words: str, shell: Shell) -> list[str]:
    return words.replace(f"{shell.folder}/npdraw-17", "BEGUN").splitlines()


def test_a_job_whose_ray_does_not_start_has_failed(shell: Shell) -> None:
    """`ray symmetric-run` itself ends with 0 then."""
    done = shell.run("slurm.sh", *TRAIN, IDLE="1")
    assert done.returncode == 1
    assert "Ray did not start" in done.stderr


def test_near_its_time_limit_the_job_is_requeued_and_resumes(shell: Shell) -> None:
    text = (CLUSTER / "slurm.sh").read_text()
    assert "\n#SBATCH --signal=B:USR1@" in text  # to the script alone, near the limit
    assert "\n#SBATCH --requeue\n" in text
    job = shell.job()
    job.send_signal(signal.SIGUSR1)
    words, errors = job.communicate(timeout=30)
    assert (shell.folder / "requeued").read_text() == "requeue 17\n"
    assert job.returncode == 128 + signal.SIGTERM  # as Slurm ended the step
    assert "job 17 is requeued" in errors
    again = shell.job(SLURM_RESTART_COUNT="1")
    (shell.folder / "end").touch()
    assert again.communicate(timeout=30)[0] == words
    assert again.returncode == 3
    assert lines(words, shell) == ["cpus=8", *STEP]


@pytest.mark.parametrize(
    ("change", "error"),
    [({"REFUSED": "1"}, "cannot be requeued"), ({"SLURM_RESTART_COUNT": "100"}, "after 100 requeues")],
)
def test_a_job_that_is_not_requeued_works_to_its_end(
    change: dict[str, str], error: str, shell: Shell
) -> None:
    job = shell.job(**change)
    for pause_s in (0, 0, 0.001, 0.003, 0.01, 0.03, 0.2):  # while it waits, and while it answers
        job.send_signal(signal.SIGUSR1)
        time.sleep(pause_s)
        assert job.poll() is None
    (shell.folder / "end").touch()
    assert error in job.communicate(timeout=30)[1]
    assert job.returncode == 3
    assert not (shell.folder / "requeued").exists()


def test_the_script_for_a_new_gpu_goes_on_after_a_step_that_fails(shell: Shell) -> None:
    """The script ends with an error. Without a GPU it measures nothing."""
    stub = shell.folder / "python"
    stub.write_text(
        '#!/bin/sh\necho "$*"\n'
        'case "$*" in *get_device_properties*) exit ${NO_GPU:-0} ;; *pytest*) exit 1 ;; esac\n'
    )
    stub.chmod(0o755)
    out = shell.folder / "out"
    done = shell.run("first_gpu.sh", "digits", "out", PYTHON=str(stub))
    assert done.returncode == 1
    assert {path.stem for path in out.glob("*.log")} == {"bench", "machine", "tests", "train"}
    assert done.stderr.startswith("tests failed: ")
    assert f"--storage {out}/runs --name first_gpu" in (out / "train.log").read_text()
    done = shell.run("first_gpu.sh", "digits", "none", PYTHON=str(stub), NO_GPU="1")
    assert (done.returncode, [path.stem for path in (shell.folder / "none").iterdir()]) == (1, ["machine"])
    assert shell.run("first_gpu.sh").returncode == 2
