"""What the report says of one case; each is computed in a task of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from livprep.cases import Receipt
from livprep.errors import StoreError
from livprep.figures import draw_thumbnail
from livprep.labels import Label, LabelArray
from livprep.pipeline import run_jobs
from livprep.preview import axial_planes, side_planes
from livprep.shown import Shown, choose_window, load_shown
from livprep.store import CaseStore, Store, open_store, place_of
from livprep.tallies import HU, tally

THUMBNAIL_SLICES = 4


@dataclass(frozen=True, eq=False)
class CaseFacts:
    """Numbers and a strip of pictures of one case.

    Parameters
    ----------
    case, patient, dataset, fingerprint
        Of the store.
    shape_zyx, spacing_mm
        Of the stored grid.
    source_spacing_mm, source_orientation
        Of the source.
    hu_range
        Lowest and highest HU.
    counts
        `(16, 4096)` voxels by label and HU (`livprep.tallies`).
    labelled
        Whether the case has labels.
    liver_ml, tumor_ml
        Volumes; the liver's with its tumors. 0 without labels.
    lesions_mm
        Diameter of the sphere of the same volume, of each 6-connected component of the tumor label.
    liver_hu
        Most frequent HU of the liver without tumor; None without liver.
    stored_bytes
        On disk.
    repairs, warnings
        As recorded when the case was ingested.
    windows
        Names of the stored channels.
    thumbnail
        WebP.
    """

    case: str
    patient: str
    dataset: str
    fingerprint: str
    shape_zyx: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    source_spacing_mm: tuple[float, float, float]
    source_orientation: str
    hu_range: tuple[int, int]
    counts: npt.NDArray[np.int64]
    labelled: bool
    liver_ml: float
    tumor_ml: float
    lesions_mm: tuple[float, ...]
    liver_hu: int | None
    stored_bytes: int
    repairs: tuple[str, ...]
    warnings: tuple[str, ...]
    windows: tuple[str, ...]
    thumbnail: bytes


@dataclass(frozen=True)
class FactsJob:
    """One case to look at; pickles as paths and names."""

    store: str
    case_id: str
    window: str | None = None

    @property
    def name(self) -> str:
        """Case id."""
        return self.case_id

    def run(self) -> CaseFacts:
        """Look at the case."""
        return facts_of(open_store(self.store).case(self.case_id), self.window)


def collect(store: Store, case_ids: Sequence[str], window: str | None = None, workers: int = 1) -> Iterator[CaseFacts]:
    """Facts of cases, as they are ready.

    Raises
    ------
    StoreError
        A case is damaged, or a worker died.
    """
    jobs = [FactsJob(place_of(store.path), case_id, window) for case_id in case_ids]
    for result in run_jobs(jobs, workers):
        if isinstance(result, Receipt):
            raise StoreError("STORE_CORRUPT", f"{result.case}: {result.detail}")
        yield result


def facts_of(case: CaseStore, window: str | None) -> CaseFacts:
    """Read a case once and describe it."""
    shown = load_shown(case, choose_window(case, window))
    tallied = tally(case)
    geometry, meta = case.geometry, case.meta
    voxel_ml = geometry.voxel_volume_ml
    liver = tallied.counts[Label.LIVER]
    z_mm, y_mm, x_mm = meta.source_spacing_mm
    return CaseFacts(
        case=case.case_id,
        patient=case.patient,
        dataset=case.dataset,
        fingerprint=case.fingerprint,
        shape_zyx=case.shape_zyx,
        spacing_mm=geometry.spacing_mm,
        source_spacing_mm=(z_mm, y_mm, x_mm),
        source_orientation=meta.source_orientation,
        hu_range=(case.hu_min, case.hu_max),
        counts=tallied.counts,
        labelled=case.has_labels,
        liver_ml=float(tallied.of(Label.LIVER).sum()) * voxel_ml,
        tumor_ml=float(tallied.of(Label.TUMOR).sum()) * voxel_ml,
        lesions_mm=lesion_diameters(shown.reference, voxel_ml),
        liver_hu=int(HU[int(liver.argmax())]) if liver.any() else None,
        stored_bytes=case.bytes_on_disk(),
        repairs=tuple(meta.repairs),
        warnings=tuple(meta.warnings),
        windows=tuple(case.window_names),
        thumbnail=_thumbnail(shown),
    )


def lesion_diameters(labels: LabelArray | None, voxel_ml: float) -> tuple[float, ...]:
    """Diameter in mm of the sphere of the same volume, of each 6-connected component of label 2, the largest first."""
    if labels is None or not (labels == Label.TUMOR).any():
        return ()
    (box,) = ndimage.find_objects((labels == Label.TUMOR).view(np.uint8))
    components, count = ndimage.label(labels[box] == Label.TUMOR)
    voxels = np.bincount(components.ravel(), minlength=count + 1)[1:]
    volumes_mm3 = np.sort(voxels)[::-1] * voxel_ml * 1000
    return tuple(float(diameter) for diameter in np.cbrt(6 * volumes_mm3 / np.pi))


def _thumbnail(shown: Shown) -> bytes:
    planes = axial_planes(shown, THUMBNAIL_SLICES + 2)
    inner = planes[1:-1] if len(planes) > 2 else planes
    return draw_thumbnail([*inner, *side_planes(shown)])
