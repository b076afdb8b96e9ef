"""What changed between versions of the store's format, and how attributes of an older one are read.

Version 1 is the first that was released. Whoever raises `livprep.schema.SCHEMA_VERSION` adds the step from the version
before it to `STEPS` here, and a store of that version to the golden ones of the tests.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from livprep.errors import StoreError
from livprep.schema import SCHEMA_VERSION

Attributes = dict[str, Any]


def _same(attributes: Attributes) -> Attributes:
    return attributes


@dataclass(frozen=True)
class Step:
    """The way from one version to the next.

    Parameters
    ----------
    root, case
        New attributes of the store and of a case from their old ones, `schema_version` aside. Readers apply them to
        older stores too, so these alone must make the attributes readable.
    files
        What else `livprep migrate` changes in a staged copy of a case's folder; it writes the manifests of what it
        changed anew. Readers must manage without it.
    """

    root: Callable[[Attributes], Attributes] = _same
    case: Callable[[Attributes], Attributes] = _same
    files: Callable[[Path], None] | None = None


STEPS: dict[int, Step] = {}
"""Version -> the step to the next one."""


def check_version(path: Path, attributes: Attributes) -> int:
    """Version of attributes, if this livprep can read it.

    Raises
    ------
    StoreError
        STORE_NEWER, or STORE_UNREADABLE where it is no version that ever was.
    """
    version, oldest = attributes.get("schema_version"), min((*STEPS, SCHEMA_VERSION))
    if not isinstance(version, int) or isinstance(version, bool) or version < oldest:
        raise StoreError("STORE_UNREADABLE", f"{path}: schema_version is {version!r}, expected a number from {oldest}")
    if version > SCHEMA_VERSION:
        raise StoreError("STORE_NEWER", f"{path}: schema version {version}, this livprep reads up to {SCHEMA_VERSION}")
    return version


def current_root(path: Path, attributes: Attributes) -> Attributes:
    """Attributes of a store as the current version has them; errors as in `check_version`."""
    for version in range(check_version(path, attributes), SCHEMA_VERSION):
        attributes = {**STEPS[version].root(attributes), "schema_version": version + 1}
    return attributes


def current_case(path: Path, attributes: Attributes) -> Attributes:
    """Attributes of a case as the current version has them; errors as in `check_version`."""
    for version in range(check_version(path, attributes), SCHEMA_VERSION):
        attributes = {**STEPS[version].case(attributes), "schema_version": version + 1}
    return attributes
