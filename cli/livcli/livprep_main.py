"""The program `livprep`."""

from __future__ import annotations

import click

from livcli.lazy import LazyGroup, run
from livprep.provenance import package_version

COMMANDS = {
    "ingest": ("livcli.livprep_ingest:ingest", "Read 3DIRCADb or LiTS into the store."),
    "window": ("livcli.livprep_window:window", "Add windowed channels to every case."),
    "info": ("livcli.livprep_info:info", "Show what is in the store."),
    "inspect": ("livcli.livprep_inspect:inspect", "Look at any DICOM or NIfTI source without a store."),
    "verify": ("livcli.livprep_verify:verify", "Check that the store is whole; with SRC, that it equals its sources."),
    "overlaps": ("livcli.livprep_split:overlaps", "Name the same scan under two names, from the voxels."),
    "split": ("livcli.livprep_split:split", "Divide the cases by patient and record it in the store."),
    "preview": ("livcli.livprep_preview:preview", "Draw a case: montage with contours, as PNG."),
    "report": ("livcli.livprep_report:report", "Write the whole store on one HTML page."),
    "view": ("livcli.livprep_view:view", "Look at a case in 3D in the browser, on this machine only."),
    "export": ("livcli.livprep_export:export", "Write the store for nnU-Net, MONAI (decathlon), NIfTI or Croissant."),
    "submit": ("livcli.livprep_submit:submit", "Print a batch script for a command: job array, requeue, signals."),
    "phantom": ("livcli.livprep_phantom:phantom", "Write synthetic patients in the layout of a data set."),
    "remove": ("livcli.livprep_store:remove", "Remove a case from the store."),
    "migrate": ("livcli.livprep_store:migrate", "Bring a store of an older version up."),
    "gc": ("livcli.livprep_store:gc", "Delete what killed runs left behind."),
    "catalog": ("livcli.livprep_catalog:catalog", "Show and check the catalogue of the data sets."),
    "explain": ("livcli.livprep_catalog:explain", "Say what a code means and what to do."),
    "completion": ("livcli.completion:livprep_completion", "Print a script for completion in a shell."),
}


@click.group(
    cls=LazyGroup,
    commands_at=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Example: livprep ingest ircadb/ && livprep window --wl 40 --ww 220 && livtrain fit",
)
@click.version_option(package_version(), prog_name="livprep")
def livprep() -> None:
    """Turn 3DIRCADb (DICOM) and LiTS (NIfTI) into Zarr stores for liver and liver-tumor segmentation.

    Not a medical device.
    """


def main() -> None:
    """Entry point of the console script."""
    run(livprep, "livprep")
