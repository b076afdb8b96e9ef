"""`livtrain predict`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from livcli.options import advise, output_options, say, store_option


@click.command(
    epilog="Example: livtrain predict scan.nii.gz --liver runs/liver --tumor runs/tumor -o predictions",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.argument("sources", nargs=-1, metavar="SRC...")
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Folder for the predictions.",
)
@store_option
@click.option(
    "--liver",
    type=click.Path(path_type=Path),
    multiple=True,
    default=["runs/liver"],
    show_default=True,
    help="Run of stage liver or multiclass; repeat it to average several. A folder of folds is all of them.",
)
@click.option(
    "--tumor", type=click.Path(path_type=Path), multiple=True, help="Run of stage tumor; repeat it to average several."
)
@click.option("--cases", help="Only these: train, val or test of the store's default split, or a pattern of names.")
@click.option(
    "--tta", is_flag=True, help="Average over the 8 mirrorings (8 times the work); for runs trained with flips."
)
@click.option(
    "--keep-largest/--no-keep-largest",
    default=None,
    help="Keep only the largest component of the liver.  [default: as tuned for the run, else yes]",
)
@click.option(
    "--min-lesion-ml",
    type=click.FloatRange(min=0),
    help="Drop tumor components below this volume.  [default: as tuned for the run, else 0]",
)
@click.option("--crf", flag_value="3d", help="Pass the probabilities through a dense CRF.")
@click.option("--crf-2d", "crf", flag_value="2d", help="The same, slice by slice.")
@click.option("--overlap", type=click.FloatRange(0, 1, max_open=True),
              help="Fraction of a patch that neighbors share.  [default: the run's]")  # fmt: skip
@click.option("--batch", type=click.IntRange(min=1),
              help="Patches a forward pass; fewer where memory runs out.  [default: as many as fit]")  # fmt: skip
@click.option("--bf16/--no-bf16", "amp", default=None, help="bfloat16.  [default: as trained, on CUDA]")
@click.option("--accumulate", type=click.Choice(["auto", "cpu", "device"]), default="auto", show_default=True,
              help="Where probabilities of overlapping patches are added up.")  # fmt: skip
@click.option("--probabilities", is_flag=True, help="Write probabilities too, into OUT/probabilities.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["nifti", "dicom-seg"]),
    default="nifti",
    show_default=True,
    help="dicom-seg: a DICOM segmentation that refers to the slices of the source series, with its patient ID.",
)
@click.option(
    "--header",
    type=click.Choice(["repaired", "source"]),
    default="repaired",
    show_default=True,
    help="Geometry to write where the source's header is known to be wrong.",
)
@click.option(
    "--submission",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also write this zip in the LiTS challenge's form (test cases only).",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option(
    "--catalog",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Catalogue to use instead of the built-in one.",
)
@output_options
def predict(
    sources: tuple[str, ...],
    out: Path,
    store: Path,
    liver: tuple[Path, ...],
    tumor: tuple[Path, ...],
    cases: str | None,
    form: Any,
    header: Any,
    submission: Path | None,
    device: str,
    catalog: Path | None,
    as_json: bool,
    quiet: bool,
    **choices: Any,
) -> int:
    """Segment cases of the store (ids or patterns; without SRC all of them) or scans never ingested.

    SRC is a path if it exists: a DICOM folder, zip, NIfTI or folder of them. Each scan becomes OUT/<case>.nii.gz on
    its own grid: 0 background, 1 liver, 2 tumor. Not for diagnosis. A case's seconds leave out writing, which goes on
    beside the next case.
    """
    from livprep.catalog import load_catalog
    from livprep.sources import catalog_beside
    from livtrain.checkpoint import run_folders
    from livtrain.inference import PredictOptions, Predictor, find_scans, load_stage, predict_folder
    from livtrain.trainer.plan import choose_device

    facts = load_catalog(catalog or catalog_beside([Path(source) for source in sources]))
    chosen = choose_device(device)
    liver, tumor = (tuple(run for path in paths for run in run_folders(path)) for paths in (liver, tumor))
    predictor = Predictor(
        [load_stage(run, ("liver", "multiclass")) for run in liver],
        [load_stage(run, ("tumor",)) for run in tumor],
        PredictOptions(**choices),
        chosen,
    )
    scans, rejected = find_scans(sources, store, facts, cases)
    say(quiet, f"{len(scans)} scan(s), {len(liver)} liver and {len(tumor)} tumor network(s), device {chosen}")
    if predictor.tuned.choices:
        say(quiet, f"post-processing tuned on validation: {predictor.tuned.text}")
    codes = set()
    asked: dict[str, Any] = {"header": header, "submission": submission, "form": form}
    for receipt in predict_folder(scans, predictor, out, rejected=rejected, say=lambda text: say(quiet, text), **asked):
        codes |= {receipt.code} if receipt.status == "rejected" else set()
        click.echo(json.dumps(asdict(receipt)) if as_json else _line(receipt))
        for warning in () if as_json else receipt.warnings:
            say(quiet, f"  {warning}")
    advise(quiet or as_json, codes)
    return 3 if codes else 0


def _line(receipt: Any) -> str:
    """One line for a person."""
    if receipt.status == "rejected":
        return f"{receipt.case:<14} rejected   {receipt.code}: {receipt.detail}"
    volumes = ", ".join(f"{name} {ml:.1f} ml" for name, ml in receipt.volume_ml.items())
    share = receipt.network_s / receipt.seconds if receipt.seconds else 0.0
    return f"{receipt.case:<14} predicted  {receipt.seconds:6.1f} s ({share:.0%} network)  {volumes}  {receipt.path}"
