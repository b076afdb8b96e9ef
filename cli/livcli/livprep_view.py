"""`livprep view`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from livcli.options import output_options, say, store_option


@click.command(
    epilog="Example: livprep view ircadb-01 --pred predictions",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.argument("case")
@click.option("--window", help="Shown first: a stored channel, a preset, or LEVEL/WIDTH in HU. Default: 50/400.")
@click.option(
    "--pred",
    type=click.Path(path_type=Path, exists=True),
    help="Folder of predictions (<case>.nii.gz on the source's grid), or one file; an overlay of its own.",
)
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Of 127.0.0.1; 0 (default) takes a free one.")
@click.option("--no-open", is_flag=True, help="Print the address and open no browser.")
@store_option
@output_options
def view(
    case: str,
    window: str | None,
    pred: Path | None,
    port: int,
    no_open: bool,
    store: Path,
    as_json: bool,
    quiet: bool,
) -> None:
    """Show CASE in 3D in the browser: scan, windows, labels and predictions with sliders.

    The page is served on 127.0.0.1 alone, behind a random token, and loads nothing from anywhere else. Ctrl-C ends it.
    """
    import webbrowser

    from livprep.shown import choose_window, read_prediction
    from livprep.store import open_store
    from livprep.viewing import Scene, Viewer

    opened = open_store(store)
    entry = opened.case(case)
    labels = None if pred is None else read_prediction(entry, pred, opened.preparation)
    viewer = Viewer(Scene(entry, choose_window(entry, window), labels), port)
    click.echo(json.dumps({"case": case, "url": viewer.url}) if as_json else viewer.url)
    say(quiet, "Ctrl-C ends it")
    if not no_open:
        webbrowser.open(viewer.url)
    try:
        viewer.serve()
    except KeyboardInterrupt:
        say(quiet, "")
