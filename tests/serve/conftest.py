"""Small models behind the API or a server in this process, and a browser; without Ray."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.helpers.serving import Served, serving
from tests.helpers.studio import Studio, open_chromium
from tests.helpers.studio_models import ASKED, GREY, WITH_U, save_model


@pytest.fixture(scope="package")
def grey(tmp_path_factory: pytest.TempPathFactory) -> Served:
    return Served(save_model(tmp_path_factory.mktemp("grey"), GREY))


@pytest.fixture(scope="package")
def colour(tmp_path_factory: pytest.TempPathFactory) -> Served:
    return Served(save_model(tmp_path_factory.mktemp("colour"), WITH_U["map"]))


@pytest.fixture(scope="package")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Served:
    """A model that is conditioned on one of three classes."""
    return Served(save_model(tmp_path_factory.mktemp("classes"), ASKED))


@pytest.fixture(scope="package")
def classes_address(classes: Served) -> Iterator[str]:
    with serving(classes.folder) as address:
        yield address


@pytest.fixture(params=["grey", "colour"])
def served(request: pytest.FixtureRequest) -> Served:
    """A grey model whose steps are the places, and one in colour of ranked order with latents u."""
    found: Served = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="package")
def browser() -> Iterator[Any]:
    with open_chromium() as opened:
        yield opened


@pytest.fixture(scope="package")
def grey_address(grey: Served) -> Iterator[str]:
    with serving(grey.folder) as address:
        yield address


@pytest.fixture(scope="package")
def colour_address(colour: Served) -> Iterator[str]:
    with serving(colour.folder) as address:
        yield address


@pytest.fixture(params=["desktop-light", "phone-dark"])
def studio(request: pytest.FixtureRequest, browser: Any, grey_address: str) -> Iterator[Studio]:
    """The page of the grey model without motion, so that A is shown at once."""
    opened = Studio(browser, grey_address, request.param)
    yield opened
    opened.close()
