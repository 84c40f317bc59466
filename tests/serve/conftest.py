"""A server of a small model in this process, and a browser; without Ray."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.helpers.chromium import open_chromium
from tests.helpers.serving import serving
from tests.helpers.studio import Studio
from tests.helpers.studio_models import GREY, WITH_U, save_model


@pytest.fixture(scope="package")
def browser() -> Iterator[Any]:
    with open_chromium() as opened:
        yield opened


@pytest.fixture(scope="package")
def grey_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(save_model(tmp_path_factory.mktemp("grey"), GREY)) as address:
        yield address


@pytest.fixture(scope="package")
def colour_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(save_model(tmp_path_factory.mktemp("colour"), WITH_U["map"])) as address:
        yield address


@pytest.fixture(params=["desktop-light", "phone-dark"])
def studio(request: pytest.FixtureRequest, browser: Any, grey_address: str) -> Iterator[Studio]:
    """The page of the grey model, without motion: A is there at once."""
    opened = Studio(browser, grey_address, request.param)
    yield opened
    opened.close()
