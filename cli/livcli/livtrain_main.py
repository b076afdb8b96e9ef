"""The program `livtrain`."""

from __future__ import annotations

import click

from livcli.lazy import LazyGroup, run
from livprep.provenance import package_version

COMMANDS = {
    "fit": ("livcli.livtrain_fit:fit", "Train one stage on patches streamed from the store."),
    "sweep": ("livcli.livtrain_sweep:sweep", "Search the window: a short training for each level and width."),
    "predict": ("livcli.livtrain_predict:predict", "Segment stored cases or raw scans."),
    "bench": ("livcli.livtrain_bench:bench", "Measure throughput on this machine and store."),
    "evaluate": ("livcli.livtrain_evaluate:evaluate", "Score predictions as the LiTS challenge does."),
    "tune": ("livcli.livtrain_tune:tune", "Choose post-processing on the validation cases."),
    "report": ("livcli.livtrain_report:report", "Write a run on one page: curves, worst cases, pictures."),
    "export": ("livcli.livtrain_export:export", "Write a network as safetensors, ONNX, TorchScript or MONAI bundle."),
    "completion": ("livcli.completion:livtrain_completion", "Print a script for completion in a shell."),
}


@click.group(
    cls=LazyGroup,
    commands_at=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Example: livtrain fit && livtrain predict scan.nii.gz --liver runs/liver -o out",
)
@click.version_option(package_version(), prog_name="livtrain")
def livtrain() -> None:
    """Train, predict and evaluate liver and liver-tumor segmentation on a livprep store.

    Not a medical device.
    """


def main() -> None:
    """Entry point of the console script."""
    run(livtrain, "livtrain")


if __name__ == "__main__":  # torchrun -m livcli.livtrain_main
    main()
