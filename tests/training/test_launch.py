"""How Ray is started, without starting it."""

import os
from unittest import mock

import pytest
import ray

from npdraw_dist.config.schema import ScaleConfig
from npdraw_dist.core.errors import UserError
from npdraw_dist.training.launch import start_ray


def test_a_machine_with_too_little_memory_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ValueError("The requested object store memory size is greater than the total available memory.")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with (
        mock.patch.dict(os.environ),
        pytest.raises(UserError, match=r"greater than the total .*lower --scale\.object_store_mb 999999"),
    ):
        start_ray(ScaleConfig(object_store_mb=999_999))
