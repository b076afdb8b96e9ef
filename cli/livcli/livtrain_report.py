"""`livtrain report`."""

from __future__ import annotations

from pathlib import Path

import click

from livcli.options import say


@click.command(epilog="Example: livtrain report runs/liver", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("run", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="HTML file, or a folder for report.html. Default: the run's own folder.",
)
@click.option("-q", "--quiet", is_flag=True, help="No remarks.")
def report(run: Path, output: Path | None, quiet: bool) -> None:
    """Write RUN on one page: curves, held-out cases with the worst first, pictures, settings."""
    from livtrain.evaluate.run_page import write_run_page

    path = write_run_page(run, output)
    say(quiet, f"report: {path}")
