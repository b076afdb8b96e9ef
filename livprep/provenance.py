"""What made a thing: versions and digests of settings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any


def package_version() -> str:
    """Version of the installed livprep, or `0+unknown` in a tree that was never installed."""
    try:
        return version("livprep")
    except PackageNotFoundError:
        return "0+unknown"


def digest_of(data: Mapping[str, Any]) -> str:
    """Return the sha256 (hex) of a JSON-ready mapping, independent of key order."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()
