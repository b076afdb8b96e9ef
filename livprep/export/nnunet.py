"""nnU-Net v2's raw data set: `imagesTr/CASE_0000.nii.gz`, `labelsTr`, `imagesTs`, `dataset.json`.

Training and validation cases go to Tr, where nnU-Net makes its own folds unless told otherwise: `splits_final.json`
holds the store's split or folds in nnU-Net's form, to be copied to `nnUNet_preprocessed/DATASET/` before training.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from livprep.export.cohort import LABEL_NAMES, Cohort, ExportedCase, write_pair
from livprep.export.staging import write_json

ENDING = ".nii.gz"


def write(cohort: Cohort, folder: Path, name: str) -> Iterator[ExportedCase]:
    """Write the folder; nnU-Net finds it if it is called `DatasetNNN_NAME` and lies in `nnUNet_raw`."""
    # A labelled case outside the split may be trained on unless splits_final.json is used.
    training = cohort.on("train", "val", "none", labelled=True)
    for case in cohort.cases:
        part = "Tr" if case in training else "Ts"
        yield write_pair(cohort, case, folder, f"images{part}/{case}_0000{ENDING}", f"labels{part}/{case}{ENDING}")
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(exist_ok=True)
    write_json(
        folder / "dataset.json",
        {
            "name": name,
            "channel_names": {"0": "CT"},
            "labels": {text: value for value, text in LABEL_NAMES.items()},
            "numTraining": len(training),
            "file_ending": ENDING,
            "licence": cohort.license,
        },
    )
    folds = [{"train": _known(fold.train, training), "val": _known(fold.val, training)} for fold in cohort.folds]
    if any(fold["val"] for fold in folds):
        write_json(folder / "splits_final.json", folds)


def _known(cases: Sequence[str], training: Sequence[str]) -> list[str]:
    return [case for case in cases if case in training]
