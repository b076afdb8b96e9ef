"""`fit`: the loop around the step."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from livprep.errors import RunError
from livtrain.checkpoint import BEST, LAST, Checkpoint
from livtrain.config import Settings
from livtrain.trainer.distributed import joined
from livtrain.trainer.journal import MAX_PREVIEWS, Journal, write_json
from livtrain.trainer.memory import memory_told
from livtrain.trainer.plan import Say, TrainingStore, agree_on_plan
from livtrain.trainer.resuming import open_run, reproducible
from livtrain.trainer.run import Run
from livtrain.trainer.stopping import Stopped, StopRequests
from livtrain.trainer.summary import StepReport, Summary, dice_text, report_step, summarize
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
    """Train one stage and leave its run folder (commands.md). Under torchrun, as one of the processes of a run.

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
        RUN_EXISTS, DIVERGED, OUT_OF_MEMORY, DISK_FULL, IO, or INTERRUPTED after a signal (the last step is saved then).
    """
    with joined(settings.device) as ranks, reproducible(settings.deterministic), StopRequests() as stop:
        told: Say = say if ranks.first else lambda _: None
        ranks.wait()  # rank 0 may still be writing what all of them read now
        saved = open_run(run_dir, resume)
        plan = agree_on_plan(store, settings, ranks, told)  # nothing is written before all have looked
        run = Run(plan, ranks)
        if saved is not None:
            run.restore(saved)
            told(f"resumed at step {run.step}")
        ranks.check_same("the step of the checkpoint", run.step)
        run_dir.mkdir(parents=True, exist_ok=True)
        if ranks.first:
            (run_dir / "config.yaml").write_text(plan.settings.dump_yaml(), encoding="utf-8")
        with Journal(run_dir, run.step, writes=ranks.first) as journal:
            return _Loop(run, run_dir, journal, stop, told, on_step).go()


class _Loop:
    """The loop and what it does between steps; with several ranks, each does the same at the same step."""

    def __init__(
        self,
        run: Run,
        run_dir: Path,
        journal: Journal,
        stop: StopRequests,
        say: Say,
        on_step: Callable[[StepReport], None],
    ) -> None:
        self.run, self.dir, self.journal, self.stop, self.say = run, run_dir, journal, stop, say
        self.on_step, self._ranks = on_step, run.ranks
        self.settings, self.plan = run.settings, run.plan
        self._pending: list[tuple[int, Tensor, float, tuple[str, ...]]] = []
        self._saved_at, self._saved_step = time.perf_counter(), run.step

    def go(self) -> Summary:
        """Train until the steps or the time are used up, or validations stop getting better."""
        run, settings = self.run, self.settings
        with run.loader(self.say) as loader:
            while True:
                self._agree()
                if self._validation_due():
                    self._validate()
                if ended := self._ended():
                    return self._finish(ended)
                began, rate = time.perf_counter(), run.learning_rate
                with run.waits.fetching():
                    batches = [next(loader) for _ in range(settings.accumulate)]
                with memory_told(settings):
                    loss = run.train_step(batches)
                seen = tuple(case_id for batch in batches for case_id in batch.case_ids)
                self._pending.append((run.step, loss, rate, seen))
                logged = self._log() if run.step % settings.log_every == 0 or run.fraction >= 1 else None
                run.progress.training_s += time.perf_counter() - began  # with the wait for the losses above
                if logged is not None:
                    self.on_step(report_step(run, logged))

    def _agree(self) -> None:
        """Exchange clocks and signals, save if it is time, and stop if any rank was asked to."""
        run, unsaved_s = self.run, time.perf_counter() - self._saved_at
        number, run.agreed_s, unsaved_s = self._ranks.largest(self.stop.received or 0, run.seconds, unsaved_s)
        if run.step > self._saved_step and (number or unsaved_s >= self.settings.checkpoint_s):
            self._save()
        if number:
            self._stop(number)

    def _ended(self) -> str:
        """Why the run is over; empty while it is not."""
        if self.settings.early_stop and self.run.progress.stale >= self.settings.early_stop:
            return "early_stop"
        if self.run.fraction < 1:
            return ""
        return "steps" if self.settings.steps is not None and self.run.step >= self.settings.steps else "time"

    def _log(self) -> float | None:
        """Write the losses since the last time and return the last; stop where one is not finite."""
        pending, run = self._pending, self.run
        if not pending:
            return None
        losses = torch.stack([loss for _, loss, _, _ in pending])
        values = self._ranks.mean(losses)
        run.progress.waiting_s += run.waits.taken_s()
        for position, ((step, _, rate, seen), loss) in enumerate(zip(pending, values, strict=True)):
            if not math.isfinite(loss):
                own = seen if not bool(losses[position].isfinite()) else ()
                named = sorted({case_id for part in self._ranks.gather(own) for case_id in part})
                raise RunError(
                    "DIVERGED",
                    f"step {step}: the loss is {loss} on {', '.join(named)}; "
                    "lower --set learning_rate; the last good checkpoint is kept",
                )
            self.journal.record(step, {"loss": loss, "learning_rate": rate, "seconds": round(run.seconds, 3)})
        pending.clear()
        return values[-1]

    def _validation_due(self) -> bool:
        run, every = self.run, self.settings.validate_every
        if not self.plan.val or run.progress.validated_step == run.step:
            return False
        if run.fraction >= 1:
            return True
        if not every or not run.step or run.step % every:
            return False
        share = self.settings.validation_share
        if run.progress.affordable(run.agreed_s, share):
            return True
        self.say(f"step {run.step}: validation left out; it would take more than {share:.0%} of the time")
        return False

    def _validate(self) -> None:
        """Score the held-out cases, and keep the weights if they are the best so far."""
        self._log()
        run, began = self.run, time.perf_counter()
        dice, own = self._score(self.plan.val[: self.settings.validation_cases])
        means = mean_dice(list(dice.values()))
        values = {"val_dice" if name == "mean" else f"val_dice_{name}": value for name, value in means.items()}
        better = run.observe(means["mean"])
        if run.progress.dice_mean is not None:
            values["ema_val_dice"] = run.progress.dice_mean
        self.journal.record(run.step, {**values, **run.learned_windows()}, dice)
        self.journal.preview(own, run.step)
        self.journal.publish()
        run.progress.validated(run.step, self._ranks.largest(time.perf_counter() - began)[0])
        self.say(
            f"step {run.step}: validation Dice {dice_text(means)} on {len(dice)} cases{' (best)' if better else ''}"
        )
        checkpoint = self._save()
        if better:
            self._write(checkpoint, BEST)

    def _score(self, case_ids: tuple[str, ...]) -> tuple[dict[str, dict[str, float]], list[CaseScore]]:
        """Dice of cases, which the ranks share among them; and what this rank scored of those that are drawn."""
        spacings = {case_id: self.plan.cases[case_id].geometry.spacing_mm for case_id in case_ids}
        own: list[CaseScore] | None = None
        try:
            with self.run.validated_weights():
                own = validate(
                    self.run.network,
                    self.plan.cases,
                    spacings,
                    self._ranks.part(case_ids),
                    self.settings,
                    lambda: self.stop.received is not None,
                )
        except Interrupted:
            pass
        parts = self._ranks.gather(None if own is None else [(score.case_id, score.dice) for score in own])
        if own is None or None in parts:
            self._save()
            self._stop(self._ranks.largest(self.stop.received or 0)[0])
        whole = self._ranks.in_order([part for part in parts if part is not None])
        return dict(whole), [score for score in own or [] if score.case_id in case_ids[:MAX_PREVIEWS]]

    def _save(self) -> Checkpoint:
        """Write `last.pt`; it is also `best.pt` while no validation Dice is known."""
        self._log()
        checkpoint = self.run.checkpoint()
        self._write(checkpoint, LAST)
        if self.run.progress.best_val_dice is None:
            self._write(checkpoint, BEST)
        self._saved_at, self._saved_step = time.perf_counter(), self.run.step
        return checkpoint

    def _write(self, checkpoint: Checkpoint, name: str) -> None:
        if self._ranks.first:
            checkpoint.save(self.dir / name)

    def _stop(self, number: float) -> None:
        self.journal.publish()
        asked = signal.Signals(int(number))
        raise Stopped(
            asked, f"stopped by {asked.name} at step {self.run.step}, which is saved; add --resume to continue"
        )

    def _finish(self, ended: str) -> Summary:
        run = self.run
        self._save()
        dice, own = self._score(self.plan.train[: self.settings.train_dice_cases])
        means = mean_dice(list(dice.values()))
        if dice:
            self.journal.record(run.step, {"train_dice": means["mean"]})
            self.say(f"training Dice {dice_text(means)} on {', '.join(dice)}")
        if not self.plan.val:
            self.journal.preview(own, run.step)
        self.journal.publish()
        losses = self.journal.curve("loss")
        summary = summarize(run, ended, losses[-1][1] if losses else None, means["mean"], self.dir)
        if self._ranks.first:
            write_json(self.dir / "summary.json", asdict(summary))
        return summary
