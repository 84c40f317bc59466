"""One local Ray and one tiny finished run for the tests of the stages; and a command's mistakes."""

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from npdraw_dist import train
from npdraw_dist.config.cli import run_command
from npdraw_dist.config.schema import ScaleConfig

Main = Callable[[Sequence[str]], None]
Refused = Callable[..., str]

# The smallest budget that still checkpoints twice a stage: 4 steps each.
SETTINGS = {
    "bank.size": 20,
    "prior.images": 512,
    "prior.width": 16,
    "prior.depth": 1,
    "prior.attention_heads": 2,
    "vae.images": 512,
    "vae.encoder_width": 16,
    "vae.decoder_width": 16,
    "eval.images": 32,
    "eval.k": 5,
    "eval.samples": 16,
    "data.fraction": 0.3,
    "train.batch_size": 128,
    "train.micro_batch": 64,
    "train.eval_every_images": 256,
    "scale.num_workers": 1,
}
TINY = [word for key, value in SETTINGS.items() for word in (f"--{key}", str(value))]


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refused:
    """refused(main, *argv): exit status 2 and exactly one line on stderr, which it returns."""

    def call(main: Main, *argv: str) -> str:
        monkeypatch.setattr(sys, "argv", ["command", *argv])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            run_command(main)
        error = capsys.readouterr().err
        assert stopped.value.code == 2, error
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        assert error.endswith("\n")
        return error

    return call


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """Ray as the commands start it."""
    import ray

    from npdraw_dist.dist.launch import start_ray

    start_ray(ScaleConfig(object_store_mb=128))
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def tiny_run(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of one finished `train` with the budget TINY."""
    storage = tmp_path_factory.mktemp("runs")
    train.main(["--storage", str(storage), "--name", "tiny", *TINY])
    return storage / "tiny"
