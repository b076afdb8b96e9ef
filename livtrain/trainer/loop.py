"""`fit`: the loop around the step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from livprep.errors import RunError
from livprep.provenance import package_version
from livtrain.checkpoint import BEST, LAST, Checkpoint
from livtrain.config import Settings
from livtrain.trainer.journal import Journal, write_json
from livtrain.trainer.plan import Say, TrainingStore, make_plan
from livtrain.trainer.run import Run, open_run, reproducible
from livtrain.trainer.stopping import Stopped, StopRequests
from livtrain.trainer.summary import StepReport, Summary, dice_text
from livtrain.trainer.validation import CaseScore, Interrupted, mean_dice, validate


def fit(
    store: TrainingStore,
    settings: Settings,
    run_dir: Path,
    *,
    resume: bool = False,
    say: Say = lambda _: None,
    on_step: Callable[[StepReport], None] = lambda _: None,
) -> Summary:
    """Train one stage and leave its run folder (commands.md).

    Parameters
    ----------
    store
        An open store with labelled cases.
    settings
        Settings; what they leave open (windows, split, device, patch) is decided here and said.
    run_dir
        The run's folder; made if it is not there.
    resume
        Continue the run in `run_dir`, bit for bit on a CPU; without one there, start.
    say
        Takes one line for each choice and validation.
    on_step
        Takes the state of the run every `log_every` steps.

    Raises
    ------
    UsageError
        The settings do not fit the store, or the run to resume.
    RunError
        RUN_EXISTS, DIVERGED, DISK_FULL, IO, or INTERRUPTED after a signal (the last step is saved then).
    """
    saved = open_run(run_dir, resume)
    plan = make_plan(store, settings, say)
    with reproducible(plan.settings.deterministic), StopRequests() as stop:
        run = Run(plan)
        if saved is not None:
            run.restore(saved)
            say(f"resumed at step {run.step}")
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / "config.yaml").write_text(plan.settings.dump_yaml(), encoding="utf-8")
        with Journal(run_dir, run.step) as journal:
            return _Loop(run, run_dir, journal, stop, say, on_step).go()


class _Loop:
    """The loop and what it does between steps."""

    def __init__(
        self,
        run: Run,
        run_dir: Path,
        journal: Journal,
        stop: StopRequests,
        say: Say,
        on_step: Callable[[StepReport], None],
    ) -> None:
        self.run, self.dir, self.journal, self.stop, self.say, self.on_step = (
            run,
            run_dir,
            journal,
            stop,
            say,
            on_step,
        )
        self.settings, self.plan = run.settings, run.plan
        self._pending: list[tuple[int, Tensor, float, tuple[str, ...]]] = []
        self._saved_at = time.perf_counter()

    def go(self) -> Summary:
        """Train until the steps or the time are used up."""
        run, settings = self.run, self.settings
        with run.loader(self.say) as loader:
            while True:
                if self._validation_due():
                    self._validate()
                if run.fraction >= 1:
                    return self._finish()
                began = time.perf_counter()
                rate = run.learning_rate
                batches = [next(loader) for _ in range(settings.accumulate)]
                run.progress.waiting_s += time.perf_counter() - began
                loss = run.train_step(batches)
                seen = tuple(case_id for batch in batches for case_id in batch.case_ids)
                self._pending.append((run.step, loss, rate, seen))
                if run.step % settings.log_every == 0 or run.fraction >= 1:
                    self._log()
                run.progress.training_s += time.perf_counter() - began
                if self.stop.received or time.perf_counter() - self._saved_at >= settings.checkpoint_s:
                    self._save()
                if self.stop.received:
                    self._stop()

    def _log(self) -> None:
        """Write the losses since the last time; stop where one is not finite."""
        run = self.run
        values = torch.stack([loss for _, loss, _, _ in self._pending]).tolist() if self._pending else []
        for (step, _, rate, case_ids), loss in zip(self._pending, values, strict=True):
            if not math.isfinite(loss):
                raise RunError(
                    "DIVERGED",
                    f"step {step}: the loss is {loss} on {', '.join(sorted(set(case_ids)))}; "
                    "lower --set learning_rate; the last good checkpoint is kept",
                )
            self.journal.record(step, {"loss": loss, "learning_rate": rate, "seconds": round(run.seconds, 3)})
        self._pending.clear()
        if values:
            self.on_step(self._report(values[-1]))

    def _report(self, loss: float) -> StepReport:
        run, fraction = self.run, self.run.fraction
        return StepReport(
            step=run.step,
            steps=self.settings.steps,
            fraction=fraction,
            loss=loss,
            patches_per_s=self._patches_per_s(),
            seconds=run.seconds,
            seconds_left=run.seconds * (1 - fraction) / fraction if fraction else float("inf"),
        )

    def _validation_due(self) -> bool:
        every, step = self.settings.validate_every, self.run.step
        at_step = every > 0 and step > 0 and step % every == 0
        return bool(self.plan.val) and self.run.progress.validated_step != step and (at_step or self.run.fraction >= 1)

    def _validate(self) -> None:
        """Score the held-out cases, and keep the weights if they are the best so far."""
        self._log()
        run = self.run
        scores = self._score(self.plan.val[: self.settings.validation_cases])
        means = mean_dice(scores)
        values = {"val_dice" if name == "mean" else f"val_dice_{name}": value for name, value in means.items()}
        self.journal.record(run.step, values, {score.case_id: score.dice for score in scores})
        self.journal.preview(scores)
        self.journal.publish()
        run.progress.validated_step = run.step
        better = run.observe(means["mean"])
        self.say(
            f"step {run.step}: validation Dice {dice_text(means)} on {len(scores)} cases{' (best)' if better else ''}"
        )
        checkpoint = self._save()
        if better:
            checkpoint.save(self.dir / BEST)

    def _score(self, case_ids: tuple[str, ...]) -> list[CaseScore]:
        spacings = {case_id: self.plan.cases[case_id].geometry.spacing_mm for case_id in case_ids}
        try:
            with self.run.validated_weights():
                return validate(
                    self.run.network,
                    self.plan.cases,
                    spacings,
                    case_ids,
                    self.settings,
                    lambda: self.stop.received is not None,
                )
        except Interrupted:
            self._save()
            self._stop()
            raise AssertionError("unreachable: _stop raises") from None

    def _save(self) -> Checkpoint:
        """Write `last.pt`; it is also `best.pt` while no validation Dice is known."""
        self._log()
        checkpoint = self.run.checkpoint()
        checkpoint.save(self.dir / LAST)
        if self.run.progress.best_val_dice is None:
            checkpoint.save(self.dir / BEST)
        self._saved_at = time.perf_counter()
        return checkpoint

    def _stop(self) -> None:
        number = self.stop.received
        assert number is not None
        self.journal.publish()
        raise Stopped(
            number,
            f"stopped by {number.name} at step {self.run.step}, which is saved; add --resume to continue",
        )

    def _finish(self) -> Summary:
        run, settings, progress = self.run, self.settings, self.run.progress
        self._save()
        scores = self._score(self.plan.train[: settings.train_dice_cases])
        means = mean_dice(scores)
        if scores:
            self.journal.record(run.step, {"train_dice": means["mean"]})
            self.say(f"training Dice {dice_text(means)} on {', '.join(score.case_id for score in scores)}")
        if not self.plan.val:
            self.journal.preview(scores)
        self.journal.publish()
        losses = self.journal.curve("loss")
        summary = Summary(
            stage=settings.stage,
            network=settings.network,
            preset=settings.preset,
            parameters=sum(p.numel() for p in run.network.parameters()),
            steps=run.step,
            stopped_by="steps" if settings.steps is not None and run.step >= settings.steps else "time",
            seconds=round(run.seconds, 3),
            loss=losses[-1][1] if losses else None,
            best_val_dice=progress.best_val_dice,
            best_step=progress.best_step,
            train_dice=means["mean"] if math.isfinite(means["mean"]) else None,
            patches_per_s=round(self._patches_per_s(), 3),
            data_wait_fraction=round(progress.waiting_s / max(progress.training_s, 1e-9), 4),
            device=_device_name(run.device),
            train_cases=len(self.plan.train),
            val_cases=len(self.plan.val),
            run=str(self.dir),
            version=package_version(),
        )
        write_json(self.dir / "summary.json", asdict(summary))
        return summary

    def _patches_per_s(self) -> float:
        return self.run.step * self.run.patches_per_step / max(self.run.progress.training_s, 1e-9)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
