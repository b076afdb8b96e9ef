"""`livprep export`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from livcli.options import output_options, say, store_option


@click.command(
    epilog="Example: livprep export nnunet nnUNet_raw/Dataset003_Liver",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.argument("form", metavar="FORMAT", type=click.Choice(["nifti", "nnunet", "decathlon", "croissant"]))
@click.argument("dest", type=click.Path(path_type=Path))
@store_option
@click.option("--cases", metavar="PATTERN", help="Only these: patterns of case ids, separated by commas.")
@click.option(
    "--split", default="default", show_default=True, help="Recorded split or folds that say what is for training."
)
@output_options
def export(form: Any, dest: Path, store: Path, cases: str | None, split: str, as_json: bool, quiet: bool) -> None:
    """Write the store's cases for other tools: nifti, nnunet, decathlon or croissant.

    DEST appears when everything is written. HU and labels are those of the store, on its grid; nothing of a source's
    header is in it. The recorded split becomes imagesTr and imagesTs, and nnU-Net's splits_final.json.
    """
    from livprep.export import export_store

    count = 0
    for entry in export_store(store, form, dest, cases=cases, split=split):
        count += 1
        if as_json:
            click.echo(json.dumps(asdict(entry)))
        else:
            click.echo(f"{entry.case:<14} {entry.split:<5} {entry.bytes / 1e6:8.1f} MB  {entry.image}")
    say(quiet, f"{count} case(s) in {dest}")
    if form == "nnunet" and (dest / "splits_final.json").is_file():
        then = "once nnUNetv2_plan_and_preprocess has made it, to train on the store's own split"
        say(quiet, f"copy splits_final.json to nnUNet_preprocessed/{dest.name} {then}")
