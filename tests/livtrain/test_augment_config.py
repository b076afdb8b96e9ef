from __future__ import annotations

import pytest
from pydantic import ValidationError

from livprep.errors import UsageError
from livtrain.augment_config import PRESETS, AugmentSettings, Chance
from livtrain.config import resolve, settings_from


def _chances(settings: AugmentSettings) -> dict[str, float]:
    return {name: value.p for name, value in settings if isinstance(value, Chance)}


def test_every_transform_is_off_in_none() -> None:
    settings = AugmentSettings(preset="none")
    assert set(_chances(settings).values()) == {0.0}
    assert not settings.moves
    assert (settings.flip_z, settings.flip_y, settings.flip_x) == (False, False, False)


def test_left_and_right_stay_apart_by_default() -> None:
    assert AugmentSettings().preset == "light"
    assert AugmentSettings().flip_x is False


def test_nnunet_has_the_numbers_of_nnunet() -> None:
    """nnU-Net 2.8.1, training/nnUNetTrainer/nnUNetTrainer.py, lines 472-513 and 739-836."""
    settings = AugmentSettings(preset="nnunet")
    off = dict.fromkeys(("shear", "elastic", "window"), 0.0)
    assert _chances(settings) == {
        "rotation": 0.2, "scaling": 0.2, "noise": 0.1, "blur": 0.2, "brightness": 0.15, "contrast": 0.15,
        "low_resolution": 0.25, "gamma_inverted": 0.1, "gamma": 0.3, **off,
    }  # fmt: skip
    assert (settings.rotation.max_deg, settings.rotation.in_plane_deg) == (30, 180)
    assert settings.scaling.field == (0.7, 1.4)
    assert settings.scaling.isotropic
    assert settings.noise.sd == (0, 0.1)
    assert (settings.blur.p_channel, settings.blur.sigma) == (0.5, (0.5, 1))
    assert settings.brightness.factor == settings.contrast.factor == (0.75, 1.25)
    assert (settings.low_resolution.p_channel, settings.low_resolution.zoom) == (0.5, (0.5, 1))
    assert settings.gamma.exponent == settings.gamma_inverted.exponent == (0.7, 1.5)
    assert settings.gamma.retain
    assert settings.gamma_inverted.retain
    assert (settings.flip_z, settings.flip_y, settings.flip_x) == (True, True, True)
    assert settings.flat((40, 128, 128)) is True
    assert settings.flat((43, 128, 128)) is False


def test_given_keys_win_over_the_preset_and_keep_its_other_values() -> None:
    settings = AugmentSettings.model_validate({"preset": "nnunet", "noise": 0, "blur": {"p": 0.5}, "flip_x": False})
    assert (settings.noise.p, settings.noise.sd) == (0, (0, 0.1))
    assert (settings.blur.p, settings.blur.p_channel) == (0.5, 0.5)
    assert (settings.flip_x, settings.flip_y) == (False, True)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_come_back_from_their_dump(name: str) -> None:
    run = resolve(assignments=[f"augment.preset={name}", "augment.window=0.3"])
    assert run.augment.window.p == 0.3
    assert run.augment == AugmentSettings.model_validate({"preset": name, "window": 0.3})
    assert settings_from(run.model_dump(mode="json")) == run


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"noise": 1.5}, "noise.p"),
        ({"noise": {"sd": (0.2, 0.1)}}, "expected the lower number first"),
        ({"gamma": {"exponent": (0, 1)}}, "expected positive numbers"),
        ({"elastic": {"step_mm": (10, 20), "shift_mm": (0, 5)}}, "beyond which space folds"),
        ({"elastic": {"shift_mm": (-1, 5)}}, "expected 0 to 0.4 of the distance"),
        ({"preset": "strong"}, "preset"),
        ({"clip": 3}, "clip"),
        ({"noise": True}, "noise"),
        ({"nois": 1}, "nois"),
    ],
)
def test_faulty_settings_are_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        AugmentSettings.model_validate(given)
    assert message in str(caught.value)
    with pytest.raises(UsageError) as refused:
        settings_from({"augment": given})
    assert refused.value.code == "CONFIG_INVALID"
