"""What torchrun starts in `test_distributed`: two ranks train, are stopped, go on, diverge, and are refused."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from fake_store import FakeStore, fake_store

from livprep.errors import LivError
from livtrain.config import Settings, resolve
from livtrain.trainer import StepReport, fit, run
from livtrain.trainer.distributed import joined

COURSE = (
    "patch_zyx=[8,16,16]", "width=2", "steps=20", "validate_every=10", "validation_share=null", "checkpoint_s=1000",
    "overlap=0", "train_dice_cases=2", "log_every=1",
)  # fmt: skip


def settings(*assignments: str) -> Settings:
    """Small settings; a batch of 1 on each of two ranks is one of 2 on a single one."""
    return resolve(preset="fast-cpu", assignments=[*COURSE, *assignments], options={"device": "cpu"})


def make_store() -> FakeStore:
    """Five patients, of whom one validates."""
    return fake_store(5)


def main(folder: Path) -> None:
    """Each scenario leaves a run folder; refusals go to `refused-<rank>.json`."""
    torch.set_num_threads(1)
    refused: dict[str, Any] = {}
    with joined("cpu") as ranks:
        lines: list[str] = []
        fit(make_store(), settings("batch=1"), folder / "whole", say=lines.append)
        (folder / f"said-{ranks.rank}.json").write_text(json.dumps(lines))
        fit(make_store(), settings("batch=1", "accumulate=2", "steps=5"), folder / "accumulated")

        def interrupt(report: StepReport) -> None:
            if report.step == 7 and ranks.rank == 1:  # one rank alone hears of it
                os.kill(os.getpid(), signal.SIGUSR1)

        for name, options, hook in (
            ("dropout", ("batch=1", "dropout=0.3"), None),
            ("resumed", ("batch=1", "dropout=0.3"), interrupt),
        ):
            try:
                fit(make_store(), settings(*options), folder / name, **({"on_step": hook} if hook else {}))
            except LivError as error:
                refused[name] = [error.code, str(error)]
        fit(make_store(), settings("batch=1", "dropout=0.3"), folder / "resumed", resume=True)
        real = run.build_loss

        def poisoned(*arguments: Any, **options: Any) -> Any:
            loss, calls = real(*arguments, **options), 0

            def compute(logits: Any, target: Any, weight: Any) -> Any:
                nonlocal calls
                calls += 1
                bad = ranks.rank == 1 and calls > 2 * 4  # four maps a step
                return loss(logits, target, weight) * (float("nan") if bad else 1)

            return compute

        run.build_loss = poisoned
        for name, options in (("diverged", ("batch=1",)), ("unknown", ("split=none",))):
            try:
                fit(make_store(), settings(*options), folder / name)
            except LivError as error:
                refused[name] = [error.code, str(error)]
        (folder / f"refused-{ranks.rank}.json").write_text(json.dumps(refused))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
