"""`livtrain export`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from livcli.options import output_options


@click.command(
    epilog="Example: livtrain export runs/liver --format onnx",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "form",
    type=click.Choice(["safetensors", "onnx", "torchscript", "monai"]),
    default="safetensors",
    show_default=True,
    help="What to write; monai is a bundle folder.",
)
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), help="File or folder to write.  [default: RUN/export/...]"
)
@output_options
def export(run: Path, form: Any, out: Path | None, as_json: bool, quiet: bool) -> None:
    """Write a run's best network for other programs, and check that it computes the same.

    Input: the run's windows in 0...1, sizes that are multiples of 8. Output: logits. Settings, windows and
    preparation travel with it as metadata.
    """
    from livtrain.export import export_run

    receipt = export_run(run, form, out)
    if as_json:
        click.echo(json.dumps(asdict(receipt)))
    else:
        click.echo(
            f"{receipt.path}  {receipt.bytes / 1e6:.1f} MB, stage {receipt.stage}, largest difference of a logit "
            f"{receipt.largest_difference:.1e}"
        )
