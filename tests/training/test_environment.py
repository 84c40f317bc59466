"""The variables with which a command starts itself again."""

import os
import sys
from typing import Any

import pytest

from npdraw_dist.training.environment import ALLOCATOR, COMPUTE, SPIN, restart_with_environment


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """The environments of the processes that were started."""
    found: list[dict[str, str]] = []

    def start(program: str, arguments: list[str], environment: Any) -> None:
        found.append(dict(environment))

    monkeypatch.setattr(os, "execve", start)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(sys, "argv", ["train.py"])
    for name in (*COMPUTE, "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    return found


def test_a_command_starts_again_with_what_is_missing_and_only_once(
    started: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    restart_with_environment()
    (environment,) = started
    assert {key: environment[key] for key in ALLOCATOR} == ALLOCATOR
    assert environment["GOMP_SPINCOUNT"] == "7"
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    restart_with_environment()
    assert len(started) == 1


def test_who_says_how_threads_wait_is_obeyed(
    started: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    restart_with_environment()
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    restart_with_environment()
    with_ours, with_theirs = started
    assert with_ours.items() >= SPIN.items()
    assert not SPIN.keys() & with_theirs.keys()
    assert with_theirs.items() >= ALLOCATOR.items()


def test_help_is_shown_at_once(started: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "--help"])
    restart_with_environment()
    assert started == []
