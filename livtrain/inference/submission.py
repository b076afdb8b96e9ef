"""Predictions as the LiTS challenge takes them: one zip of `test-segmentation-N.nii`."""

from __future__ import annotations

import os
import re
import uuid
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from livprep.errors import UsageError
from livprep.formats.nifti import encode
from livprep.geometry import Geometry
from livprep.labels import LabelArray

TEST_CASES = 70
"""Cases of the challenge's test set, numbered from 0 (datasets.md, B.1)."""
_TEST = re.compile(r"litstest-0*(\d+)")


def challenge_number(name: str) -> int | None:
    """Number of a LiTS test case by its id; None for other names."""
    match = _TEST.fullmatch(name)
    return int(match[1]) if match and int(match[1]) < TEST_CASES else None


def check_submission(names: Iterable[str]) -> None:
    """Refuse scans that the challenge does not ask for.

    Raises
    ------
    UsageError
        A name is none of a LiTS test case.
    """
    if strange := [name for name in names if challenge_number(name) is None]:
        raise UsageError(
            "USAGE",
            f"--submission: {', '.join(strange)} {'is' if len(strange) == 1 else 'are'} no LiTS test case "
            f"(litstest-000 ... {TEST_CASES - 1:03d}, as in test-volume-N.nii); leave out --submission or these",
        )


class Submission:
    """A zip that is written beside its place and renamed when it is whole.

    Parameters
    ----------
    path
        The zip.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._zip = zipfile.ZipFile(self._partial, "w", zipfile.ZIP_DEFLATED)
        self._numbers: set[int] = set()

    def add(self, name: str, labels: LabelArray, header: Geometry) -> None:
        """Put one prediction in, with the geometry of its input's own header."""
        check_submission([name])
        number = challenge_number(name)
        assert number is not None
        entry = zipfile.ZipInfo(f"test-segmentation-{number}.nii")  # a fixed date: the same bytes every time
        entry.compress_type = zipfile.ZIP_DEFLATED
        self._zip.writestr(entry, encode(labels, header))
        self._numbers.add(number)

    @property
    def missing(self) -> Sequence[int]:
        """Numbers of the test cases that are not in the zip."""
        return [number for number in range(TEST_CASES) if number not in self._numbers]

    def publish(self) -> None:
        """Make the zip visible."""
        self._zip.close()
        with self._partial.open("rb") as file:
            os.fsync(file.fileno())
        self._partial.replace(self._path)

    def discard(self) -> None:
        """Remove what was not published."""
        self._zip.close()
        self._partial.unlink(missing_ok=True)
