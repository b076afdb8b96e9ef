"""Which post-processing a prediction gets, and what it does to masks.

`livtrain tune` chooses it on validation cases and leaves it in the run as `postprocess.json`, which `predict` reads.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from livprep.errors import RunError
from livtrain.postprocess import BoolArray, bounding_box, drop_small, fill_holes, largest_component

TUNED = "postprocess.json"
"""File of a run folder."""


class Cleanup(BaseModel):
    """Choices of post-processing; None leaves a choice to whoever comes next.

    Parameters
    ----------
    liver_threshold, tumor_threshold
        Probability from which a voxel counts; None is the stage's own rule (0.5, or the largest of several).
    keep_largest
        Keep the largest component of the liver only.
    fill_holes
        Fill holes of the liver.
    tumor_inside_liver
        Take away tumor outside of the predicted liver.
    min_lesion_ml
        Drop tumor components below this volume in ml.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    liver_threshold: float | None = Field(default=None, gt=0, lt=1)
    keep_largest: bool | None = None
    fill_holes: bool | None = None
    tumor_threshold: float | None = Field(default=None, gt=0, lt=1)
    tumor_inside_liver: bool | None = None
    min_lesion_ml: float | None = Field(default=None, ge=0)

    def over(self, below: Cleanup) -> Cleanup:
        """These choices, and those of `below` where none is made here."""
        return Cleanup(**{**below.choices, **self.choices})

    @property
    def choices(self) -> dict[str, Any]:
        """The choices that are made."""
        return self.model_dump(exclude_none=True)

    @property
    def text(self) -> str:
        """The choices for a person."""
        return ", ".join(f"{name.replace('_', ' ')} {_text(value)}" for name, value in self.choices.items())


DEFAULT = Cleanup(keep_largest=True, fill_holes=True, tumor_inside_liver=True, min_lesion_ml=0.0)


def _text(value: Any) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else f"{value:g}"


def read_tuned(run: Path) -> Cleanup:
    """What was tuned for a run folder; no choices where nothing was.

    Raises
    ------
    RunError
        CHECKPOINT_CORRUPT: the file is not one of `livtrain tune`.
    """
    try:
        text = (run / TUNED).read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return Cleanup()
    except (OSError, UnicodeDecodeError) as error:
        raise _damaged(run) from error
    try:
        return _Tuned.model_validate_json(text).cleanup
    except ValidationError as error:
        raise _damaged(run) from error


def write_tuned(run: Path, cleanup: Cleanup, **facts: Any) -> Path:
    """Leave choices in a run folder, with facts about how they were found; the file appears whole."""
    path = run / TUNED
    partial = run / f".{TUNED}.tmp"
    partial.write_text(_Tuned(cleanup=cleanup, **facts).model_dump_json(indent=1, exclude_none=True) + "\n", "utf-8")
    partial.replace(path)
    return path


class _Tuned(BaseModel):
    """The file: the choices, and whatever else was noted about them."""

    model_config = ConfigDict(frozen=True, extra="allow")

    cleanup: Cleanup


def _damaged(run: Path) -> RunError:
    return RunError(
        "CHECKPOINT_CORRUPT", f"{run / TUNED}: no post-processing as `livtrain tune` writes it; tune again or remove it"
    )


def clean_liver(liver: BoolArray, cleanup: Cleanup) -> BoolArray:
    """Keep the largest component and fill holes of a `(z, y, x)` mask, as chosen."""
    if cleanup.keep_largest:
        liver = largest_component(liver)
    return fill_holes(liver) if cleanup.fill_holes else liver


def clean_tumor(tumor: BoolArray, liver: BoolArray, voxel_volume_ml: float, cleanup: Cleanup) -> BoolArray:
    """Confine a tumor mask `(z, y, x)` to the liver and drop small components, as chosen; may change `tumor`."""
    if cleanup.tumor_inside_liver:
        tumor &= liver
    box = bounding_box(tumor)
    if cleanup.min_lesion_ml and box is not None:
        tumor[box] = drop_small(tumor[box], voxel_volume_ml, cleanup.min_lesion_ml)
    return tumor
