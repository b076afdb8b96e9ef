"""nnU-Net's own trainer, ended by time instead of after 1000 epochs; found through `nnUNet_extTrainer`.

The learning rate follows nnU-Net's polynomial over the time instead of the epochs, so that it has come down when the
time is up; pseudo validation is cut to one batch an epoch, epochs to ten steps. All else is nnU-Net's.
"""

from __future__ import annotations

import os
import time
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class nnUNetTrainerWallTime(nnUNetTrainer):  # noqa: N801 - nnU-Net finds a trainer by its own way of naming
    """Trains for `NNUNET_WALL_S` seconds."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 10, 1
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))  # its command line takes every core for a CPU
        self._wall_s = float(os.environ.get("NNUNET_WALL_S", "60"))

    def run_training(self) -> None:
        """nnU-Net's loop, epoch by epoch until the time is up; the first step starts the clock."""
        self.on_train_start()
        began = time.monotonic()
        steps = 0
        while (done := (time.monotonic() - began) / self._wall_s) < 1:
            self.on_epoch_start()
            self.on_train_epoch_start()
            outputs = []
            for _ in range(self.num_iterations_per_epoch):
                done = min((time.monotonic() - began) / self._wall_s, 1.0)
                for group in self.optimizer.param_groups:
                    group["lr"] = self.initial_lr * max(1 - done, 1e-3) ** 0.9
                outputs.append(self.train_step(next(self.dataloader_train)))
                steps += 1
                if time.monotonic() - began >= self._wall_s:
                    break
            self.on_train_epoch_end(outputs)
            self.on_validation_epoch_start()
            self.on_validation_epoch_end([self.validation_step(next(self.dataloader_val))])
            self.on_epoch_end()
        self.print_to_log_file(f"wall time is up after {steps} steps")
        self.on_train_end()

    def plot_network_architecture(self) -> None:
        """Not needed; it asks for another package."""

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Not part of the time; the test cases are predicted instead."""
