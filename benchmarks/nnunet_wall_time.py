"""nnU-Net's own training, ended by time instead of after 1000 epochs; run by the Python that holds nnunetv2.

    NNUNET_WALL_S=900 OMP_NUM_THREADS=2 python nnunet_wall_time.py 501 3d_fullres 0 -device cpu

The learning rate follows nnU-Net's polynomial over the time instead of the epochs, so that it has come down when the
time is up; pseudo validation is cut to one batch an epoch, epochs to ten steps. All else is nnU-Net's. The class goes
by nnU-Net's own name, so that results lie and predictions look where they do without it.
"""

from __future__ import annotations

import os
import time
from typing import Any

import torch
from nnunetv2.run import run_training
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class WallTime(nnUNetTrainer):
    """Trains for `NNUNET_WALL_S` seconds on `OMP_NUM_THREADS` threads."""

    def __init__(  # nnU-Net reads the names of these parameters
        self, plans: dict[str, Any], configuration: str, fold: int, dataset_json: dict[str, Any], device: torch.device
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 10, 1
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))  # its command line takes every core for a CPU
        self._wall_s = float(os.environ["NNUNET_WALL_S"])

    def run_training(self) -> None:
        """nnU-Net's loop, until the time is up; what comes before the first step is not counted."""
        self.on_train_start()
        began, steps = time.monotonic(), 0
        while time.monotonic() - began < self._wall_s:
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


def main() -> None:
    """nnU-Net's command line with this trainer."""
    WallTime.__name__ = nnUNetTrainer.__name__
    run_training.recursive_find_trainer_class_by_name = lambda _: WallTime
    run_training.run_training_entry()


if __name__ == "__main__":
    main()
