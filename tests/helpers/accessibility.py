"""axe-core on a page in the browser."""

from typing import Any

import pytest


def violations(page: Any) -> list[tuple[str, str, str]]:
    """Rule, element and what is wrong of each rule that the page breaks. Skips the test without axe-core."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    found = axe.run(page, options={"resultTypes": ["violations"]}).response["violations"]
    return [(one["id"], one["nodes"][0]["html"][:200], one["nodes"][0]["failureSummary"]) for one in found]
