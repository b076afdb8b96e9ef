"""Whether a stored case is whole: its files, what they decode to, and, with its source, where it came from.

Damage is a finding, never an exception.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from livprep.cases import Case, Finding
from livprep.catalog import Catalog
from livprep.errors import trace
from livprep.prepare import Preparation
from livprep.schema import ProfileName
from livprep.store import CaseStore, Findings, case_files, check_case
from livprep.verify.content import check_attributes, check_content
from livprep.verify.source import check_source

__all__ = ["Verdict", "VerifyJob", "verify_case"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Verdict:
    """What was found of one case; `case` is empty for the store itself."""

    case: str
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True)
class VerifyJob:
    """Everything that one worker needs to verify one case; paths and settings only.

    Parameters
    ----------
    case_id, store
        The case folder to look at.
    preparation, profile
        The store's own.
    deep
        Compare every file with its hash, decode everything and compute again what follows from HU and labels.
    source, catalog
        The case as its source has it now, to be read and prepared again; None looks at the store alone.
    """

    case_id: str
    store: str
    preparation: Preparation
    profile: ProfileName
    deep: bool = False
    source: Case | None = None
    catalog: Catalog | None = None

    @property
    def name(self) -> str:
        """Case id."""
        return self.case_id

    def run(self) -> Verdict:
        """Verify the case."""
        whole = self.deep or self.source is not None
        with case_files(Path(self.store), self.case_id, whole=whole) as case:
            return Verdict(self.case_id, tuple(verify_case(self, case)))


def verify_case(job: VerifyJob, case: CaseStore) -> list[Finding]:
    """Look at one case; whatever its state, this returns."""
    found = Findings(job.case_id)
    try:
        files, damaged = check_case(case, job.deep)
        found.found.extend(files)
        check_attributes(found, case, job.preparation)
        if job.deep:
            check_content(found, case, damaged)
        if job.source is not None and job.catalog is not None:
            check_source(found, case, damaged, job.source, job.catalog, job.preparation, job.profile)
    except Exception as error:  # damage can raise anything; what was found before it stays
        log.debug("%s:\n%s", job.case_id, trace(error))
        if not found.errors:
            found.add("STORE_DECODE", f"cannot be read ({type(error).__name__})")
    return found.found
