"""Where each setting stands: saved graphs hold widgets by their places."""

from __future__ import annotations

from typing import Any

import pytest

from trainers.errors import SettingsError
from trainers.settings.field import settings_of
from trainers.settings.run import (
    METHOD_CONFIGS,
    ON_OTHERS,
    ON_TRAINER,
    WITHOUT,
    check_queued,
    check_shared,
    config_groups,
    together,
)

# As graphs have been saved. Add at the ends, change nothing else.
SAVED = {
    "lora": "steps learning_rate rank alpha targets train_text_encoder batch_size precision "
    "gradient_checkpointing seed",
    "dreambooth": "steps learning_rate train_text_encoder weights fused_backward batch_size "
    "precision gradient_checkpointing seed",
    "textual_inversion": "token initializer vectors templates steps learning_rate batch_size "
    "precision gradient_checkpointing seed",
    "optimizer_settings": "optimizer lr_schedule warmup_steps weight_decay max_grad_norm "
    "gradient_accumulation text_encoder_learning_rate text_encoder_stop_step train_token "
    "token_learning_rate ema_decay ema_on_cpu variant rank_stabilized dropout norm_control "
    "initialization lokr_factor ema_update_step_interval adapter_weights",
    "loss_settings": "min_snr_gamma noise_offset timestep_min timestep_max caption_dropout "
    "prior_weight prior class_prompt prior_samples timestep_sampling logit_mean logit_std "
    "discrete_flow_shift caption_prefix shuffle_caption keep_tokens caption_tag_dropout_rate "
    "enable_wildcard caption_variants",
    "run_settings": "epochs held_out validate_every hand_out patience if_run_exists state_every "
    "keep_states old_states_gb log_with deterministic resume_from resume_step",
    "memory_settings": "weights_in checkpointing activations_in quantize_base compile "
    "tread_selection_ratio memory_plan",
}
MOST = 10  # widgets of a training node


def test_widgets_keep_their_places() -> None:
    places = {**ON_TRAINER, **ON_OTHERS}
    assert {name: " ".join(settings) for name, settings in places.items()} == SAVED


@pytest.mark.parametrize("method", METHOD_CONFIGS)
def test_each_setting_stands_in_one_place(method: str) -> None:
    known = {name for group in config_groups(method).values() for name in settings_of(group)}
    elsewhere = [name for names in ON_OTHERS.values() for name in names]
    placed = [*ON_TRAINER[method], *(name for name in elsewhere if name in known)]
    assert sorted(placed) == sorted(known)
    assert len(ON_TRAINER[method]) <= MOST


def test_together_takes_what_the_method_has() -> None:
    given = {
        "steps": 7, "dataset": object(), "preview": None,
        "optimizer_settings": {"optimizer": "lion", "steps": 9},
        "loss_settings": {"prior": "teacher", "noise_offset": 0.1}, "run_settings": None,
    }  # fmt: skip
    found = {"optimizer": "lion", "steps": 7, "noise_offset": 0.1}
    assert together("textual_inversion", given) == found
    assert together("lora", given) == found | {"prior": "teacher"}
    assert set(WITHOUT) <= set(METHOD_CONFIGS)


def test_contradictions_on_one_node_are_refused_when_queued() -> None:
    own = {name: default_of("dreambooth", name) for name in ON_TRAINER["dreambooth"]}
    check_queued("dreambooth", own)
    with pytest.raises(SettingsError, match="precision is 'fp16', but weights 'bf16'"):
        check_queued("dreambooth", own | {"weights": "bf16", "precision": "fp16"})
    with pytest.raises(SettingsError, match="rank is 0; allowed: 1 to 1024"):
        check_queued("lora", {"rank": 0})
    schedule = {name: default_of("lora", name) for name in ON_OTHERS["optimizer_settings"]}
    check_shared("optimizer_settings", schedule)
    with pytest.raises(SettingsError, match="warmup_steps is 5 but lr_schedule 'constant'"):
        check_shared("optimizer_settings", schedule | {"warmup_steps": 5})
    check_shared("optimizer_settings", {"warmup_steps": 5})  # the schedule is wired
    wired: dict[str, Any] = {"lr_schedule": None}  # as the host says it
    check_shared("optimizer_settings", schedule | {"warmup_steps": 5} | wired)
    check_queued("dreambooth", own | {"weights": None, "precision": "fp16"})
    with pytest.raises(SettingsError, match="noise_offset is 9"):
        check_shared("loss_settings", {"noise_offset": 9.0})


def default_of(method: str, name: str) -> object:
    """A setting's default, of whichever method has it."""
    for asked in (method, *METHOD_CONFIGS):
        for group in config_groups(asked).values():
            if name in settings_of(group):
                return settings_of(group)[name][0].default
    raise AssertionError(name)
