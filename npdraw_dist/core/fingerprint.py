"""A short name for whatever a stage was made from."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def fingerprint(facts: Mapping[str, Any]) -> str:
    """16 hexadecimal digits of the SHA-256 of `facts` as sorted JSON."""
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
