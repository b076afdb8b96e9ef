"""What each preset changes of the defaults of `livtrain.config.Settings`; values from method.md where it has them.

`gpu` and `fast-cpu` are defaults by device, `h200` is for one large card; the others train a predecessor's network
as published, or as near as its description allows. Published lengths are in epochs over its own cases; here they
are steps: epochs x cases / batch.
"""

from __future__ import annotations

from typing import Any

# Cross-entropy beside Dice: a patch without the structure has no gradient in Tversky or Dice alone, whose numerator
# is 0 there whatever the network says, so that false alarms far from it would cost nothing.
_ON_A_GPU: dict[str, Any] = {
    "amp": "bf16",
    "channels_last": True,  # cuDNN's half-precision convolutions work in this order, and copy any other into it
    "loss": "dice_ce",
    "learning_rate": 3e-4,
    "schedule": "cosine",
    "warmup": 0.02,
    "gradient_clip": 1.0,
    "ema": 0.999,
    "validation_share": 0.1,
}

PRESETS: dict[str, dict[str, Any]] = {
    "gpu": _ON_A_GPU,
    # tuned on two cores
    "fast-cpu": {
        "width": 4,
        "dropout": 0.0,
        "loss": "dice_ce",
        "patch_zyx": [32, 64, 64],
        "batch": 2,
        "steps": 400,
        "learning_rate": 3e-3,
        "schedule": "cosine",
        "warmup": 0.05,
        "gradient_clip": 1.0,
        "ema": 0.99,  # about the last hundred steps: with a handful of patients single steps differ much
        "validate_every": 100,
        "validation_share": 0.3,
        "dice_ema": 0.0,  # a handful of validations; a mean of them would lag behind
        "overlap": 0.25,
        "log_every": 1,
    },
    # cubes as nnU-Net has them for the liver; as many as fit
    "h200": {
        **_ON_A_GPU,
        "compile": True,
        "patch_zyx": [128, 128, 128],
        "batch_by_memory": True,
        "prefetch": 8,
    },
    # Unet_Window: whole slices through its search optimum for the liver (--windows hu:60/140 for --stage tumor).
    # It states no length: 100 passes over the 2258 slices of 16 of 20 patients.
    "paper-ircadb": {
        "network": "unet2d",
        "loss": "dice",
        "windows": "hu:40/220",
        "patch_zyx": [1, 512, 512],
        "batch": 8,
        "optimizer": "adam",
        "learning_rate": 1e-5,
        "schedule": "constant",
        "steps": 28_200,
    },
    # MICCAI-LITS2017: 1000 epochs of one crop of each of 111 cases
    "lits2017": {
        "network": "resunet",
        "loss": "tversky",
        "windows": "hu:0/400",
        "patch_zyx": [48, 256, 256],
        "batch": 1,
        "optimizer": "adam",
        "learning_rate": 1e-4,
        "schedule": "multistep",
        "milestones": [0.5, 0.75],
        "supervision": {"alpha": 0.33, "decay": 0.8, "decay_every": 0.04},
        "steps": 111_000,
    },
    # Image-segmentation-by-UNET / 3DUNet-Pytorch: 1000 epochs, of 111 cases as above
    "residual-unet3d": {
        "network": "resunet_plain",
        "loss": "dice_ce",
        "windows": "hu:0/400",
        "patch_zyx": [80, 112, 112],
        "batch": 1,
        "optimizer": "sgd",
        "momentum": 0.9,
        "weight_decay": 1e-5,
        "learning_rate": 0.01,
        "schedule": "multistep",
        "milestones": [0.6],
        "supervision": {"alpha": 0.4, "decay": 1.0},
        "augment": {"flip_z": True, "flip_y": True, "flip_x": True},
        "steps": 111_000,
    },
    # liver-seg-unet: the encoder frozen for 1 epoch, then 10, each about 2540 slices (18 patients of 3DIRCADb)
    "resnet34-unet2d": {
        "network": "resnet34_unet2d",
        "pretrained": True,
        "frozen": 1 / 11,
        "loss": "bce",
        "patch_zyx": [1, 512, 512],
        "batch": 4,
        "optimizer": "adam",
        "learning_rate": 1e-3,
        "schedule": "one_cycle",
        "steps": 7_000,
    },
    # Multiclass-U-Net; its third channel, an equalized one, is stored by `livprep window` where wanted
    "multiclass-unet2d": {
        "stage": "multiclass",
        "network": "multiclass_unet2d",
        "loss": "wce",
        "class_weights": [0.36, 6.6, 14.4],
        "windows": "hu:30/150,60/200",
        "patch_zyx": [1, 512, 512],
        "batch": 8,
        "optimizer": "adam",
        "learning_rate": 1e-4,
        "schedule": "plateau",
        "patience": 3,
        "steps": 20_000,
    },
    # nnU-Net's ResEnc M plan and trainer: 1000 epochs of 250 steps (its loss sums Dice and cross-entropy, ours halves)
    "resenc-m": {
        "network": "resenc",
        "loss": "dice_ce",
        "patch_zyx": [128, 128, 128],
        "batch": 2,
        "optimizer": "sgd",
        "momentum": 0.99,
        "weight_decay": 3e-5,
        "learning_rate": 0.01,
        "schedule": "poly",
        "gradient_clip": 12.0,
        "supervision": {"alpha": 1.0, "decay": 1.0},
        "amp": "bf16",
        "steps": 250_000,
    },
}
