"""A short hash of what a stage was made from."""

import hashlib
import json
from collections.abc import Mapping


def fingerprint(facts: Mapping[str, object]) -> str:
    """16 hexadecimal digits of the SHA-256 of `facts` as sorted JSON."""
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
