"""`livtrain tune`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from livcli.options import output_options, say, store_option


@click.command(
    epilog="Example: livtrain tune runs/tumor --liver runs/liver",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.argument("run", type=click.Path(path_type=Path))
@store_option
@click.option(
    "--liver",
    type=click.Path(path_type=Path),
    multiple=True,
    default=["runs/liver"],
    show_default=True,
    help="For a run of stage tumor: whose liver it is confined to; repeat it to average several.",
)
@click.option(
    "--min-gain",
    type=click.FloatRange(min=0),
    default=0.001,
    show_default=True,
    help="Mean Dice that tuned choices must gain; with less, the defaults stay.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@output_options
def tune(
    run: Path, store: Path, liver: tuple[Path, ...], min_gain: float, device: str, as_json: bool, quiet: bool
) -> None:
    """Choose a run's post-processing (thresholds, largest component, holes, least lesion) on its validation cases.

    What helps is left in RUN/postprocess.json, which predict uses. Test cases are never looked at.
    """
    from livprep.store import open_store
    from livtrain.trainer.plan import choose_device
    from livtrain.tuning import tune as tuned

    found = tuned(
        run,
        open_store(store),
        liver=liver,
        device=choose_device(device),
        min_gain=min_gain,
        say=lambda text: say(quiet, text),
    )
    if as_json:
        click.echo(json.dumps(asdict(found)))
        return
    for name, dice in found.before.items():
        click.echo(f"{name}: Dice {dice:.4f} with the defaults, {found.after[name]:.4f} with what is chosen")
    choices = ", ".join(f"{name}={value}" for name, value in found.chosen.items())
    click.echo(f"{found.tried} combinations on {len(found.cases)} cases; kept: {choices or 'the defaults'}")
    click.echo(found.path)
