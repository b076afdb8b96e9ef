"""Export one run: written beside its place, checked, renamed."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from livprep.errors import UsageError
from livtrain.export.bundle import write_bundle
from livtrain.export.forms import write_onnx, write_safetensors, write_torchscript
from livtrain.export.model import Compute, TrainedModel, largest_difference, load_model

ExportForm = Literal["safetensors", "onnx", "torchscript", "monai"]
SUFFIXES: dict[ExportForm, str] = {"safetensors": ".safetensors", "onnx": ".onnx", "torchscript": ".ts", "monai": ""}
"""Of the file; a MONAI bundle is a folder."""
_WRITERS: dict[ExportForm, Callable[[TrainedModel, Path], Compute]] = {
    "safetensors": write_safetensors,
    "onnx": write_onnx,
    "torchscript": write_torchscript,
    "monai": write_bundle,
}


@dataclass(frozen=True)
class ExportReceipt:
    """What was written, and by how much its logits differ from the run's network (see `TOLERANCE`)."""

    path: str
    form: ExportForm
    stage: str
    bytes: int
    largest_difference: float


def export_run(run: Path, form: ExportForm, dest: Path | None = None) -> ExportReceipt:
    """Export a run's best network.

    Parameters
    ----------
    run
        A run folder, or a checkpoint.
    form
        A key of `SUFFIXES`.
    dest
        File to write, replaced whole, or for `monai` a folder that does not exist or is empty; by default
        `<run>/export/<stage><suffix>`, for `monai` `<run>/export/<stage>_bundle`.

    Raises
    ------
    UsageError
        An unknown form, or the folder is in use.
    RunError
        The run cannot be loaded, or EXPORT_DIFFERS: nothing is left then.
    """
    if form not in SUFFIXES:
        raise UsageError("USAGE", f"export: format {form!r}: expected one of {', '.join(SUFFIXES)}")
    model = load_model(run)
    if dest is None:
        folder = run if run.is_dir() else run.parent
        name = f"{model.stage.name}_bundle" if form == "monai" else f"{model.stage.name}{SUFFIXES[form]}"
        dest = folder / "export" / name
    if dest.is_dir() and (form != "monai" or any(dest.iterdir())):
        raise UsageError(
            "USAGE", f"{dest}: is a folder{' that is not empty' if form == 'monai' else ''}; choose another"
        )
    dest.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays: some writers and readers go by it.
    partial = dest.with_name(f".{uuid.uuid4().hex}.{dest.name}")
    try:
        worst = largest_difference(model, _WRITERS[form](model, partial))
        size = sum(path.stat().st_size for path in (partial, *partial.rglob("*")) if path.is_file())
        partial.replace(dest)
    finally:
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        partial.unlink(missing_ok=True)
    return ExportReceipt(str(dest), form, model.stage.name, size, worst)
