"""The Medical Segmentation Decathlon's layout, which MONAI reads: `imagesTr`, `labelsTr`, `imagesTs`, a list."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from livprep.export.cohort import LABEL_NAMES, Cohort, ExportedCase, write_pair
from livprep.export.staging import write_json

_LISTS = {"train": "training", "val": "validation"}


def write(cohort: Cohort, folder: Path, name: str) -> Iterator[ExportedCase]:
    """Write the folder. `training` and `validation` list pairs, `test` images alone, as MONAI expects them."""
    lists: dict[str, list[dict[str, str]]] = {"training": [], "validation": []}
    test: list[str] = []
    for case in cohort.cases:
        key = _LISTS.get(cohort.places[case]) if cohort.cases[case].has_labels else None
        part = "Ts" if key is None else "Tr"
        written = write_pair(cohort, case, folder, f"images{part}/{case}.nii.gz", f"labels{part}/{case}.nii.gz")
        if key is None:
            test.append(f"./{written.image}")
        else:
            lists[key].append({"image": f"./{written.image}", "label": f"./{written.label}"})
        yield written
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(exist_ok=True)
    write_json(
        folder / "dataset.json",
        {
            "name": name,
            "description": "CT with liver and liver tumor",
            "reference": "livprep",
            "licence": cohort.license,
            "release": "1.0",
            "tensorImageSize": "3D",
            "modality": {"0": "CT"},
            "labels": {str(value): text for value, text in LABEL_NAMES.items()},
            "numTraining": len(lists["training"]),
            "numTest": len(test),
            **lists,
            "test": test,
        },
    )
