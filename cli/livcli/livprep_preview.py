"""`livprep preview`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from livcli.options import output_options, say, store_option


@click.command(
    epilog="Example: livprep preview ircadb-01 -o ircadb-01.png --window 40/220 --pred predictions",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.argument("case")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, dir_okay=False), required=True, help="PNG, replaced whole."
)
@click.option("--window", help="A stored channel, a preset, or LEVEL/WIDTH in HU. Default: soft tissue, 50/400.")
@click.option(
    "--pred",
    type=click.Path(path_type=Path, exists=True),
    help="Folder of predictions (<case>.nii.gz on the source's grid), or one file; drawn dashed.",
)
@store_option
@output_options
def preview(
    case: str, output: Path, window: str | None, pred: Path | None, store: Path, as_json: bool, quiet: bool
) -> None:
    """Draw CASE: 25 axial slices through the liver, a coronal and a sagittal one, with contours of the labels."""
    from livprep.preview import preview as draw
    from livprep.shown import choose_window, load_shown, read_prediction
    from livprep.store import open_store

    opened = open_store(store)
    entry = opened.case(case)
    chosen = choose_window(entry, window)
    labels = None if pred is None else read_prediction(entry, pred, opened.preparation)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_bytes(draw(load_shown(entry, chosen, labels)))
    if as_json:
        click.echo(json.dumps({"case": case, "output": str(output)}))
    else:
        say(quiet, f"preview: {output}")
