"""`livtrain report`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from livcli.options import output_options, say


@click.command(epilog="Example: livtrain report runs/liver", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("run", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="HTML file, or a folder for report.html. Default: the run's own folder.",
)
@output_options
def report(run: Path, output: Path | None, as_json: bool, quiet: bool) -> None:
    """Write RUN on one page: curves, held-out cases with the worst first, pictures, settings."""
    from livtrain.evaluate.run_page import write_run_page

    path = write_run_page(run, output)
    if as_json:
        click.echo(json.dumps({"output": str(path)}))
    else:
        say(quiet, f"report: {path}")
