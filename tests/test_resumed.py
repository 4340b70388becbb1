"""A new run that begins with a state of another one; and what a state says of its result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests import tiny
from tests.dataset_files import batch
from trainers.data.validation import held_out_places, split
from trainers.errors import RunError, SettingsError
from trainers.loop import Training, make_job
from trainers.runs.folder import Result, RunFolder, run_facts
from trainers.runs.kept.resumed import Source
from trainers.runs.kept.steps import best_step, chosen_step, kept_steps, result_at, steps_with_room
from trainers.runs.states import StateSaver
from trainers.runs.story import read_metrics
from trainers.settings.run import RunConfig
from trainers.step import Job

STEPS = 6
TEXT = {"train_text_encoder": True}
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("lora", {"dropout": 0.3, "lr_schedule": "cosine", **TEXT}),
    "dora": ("lora", {"variant": "dora"}),
    "pissa": ("lora", {"initialization": "pissa"}),
    "bf16 adapter": ("lora", {"adapter_weights": "bf16", "precision": "bf16"}),
    "muon": ("lora", {"optimizer": "muon", "lr_schedule": "polynomial"}),
    "adafactor": ("lora", {"optimizer": "adafactor", "learning_rate": 0.0}),
    "best step": ("lora", {"held_out": 0.4, "validate_every": 1, "hand_out": "best step"}),
    "dreambooth": ("dreambooth", {"ema_decay": 0.9, **TEXT}),
    "average in RAM": (
        "dreambooth", {"ema_decay": 0.9, "ema_on_cpu": True, "ema_update_step_interval": 4},
    ),
    "fused": ("dreambooth", {"fused_backward": True}),
    "textual inversion": ("textual_inversion", {"norm_control": True}),
}  # fmt: skip
every_run = pytest.mark.parametrize(("method", "settings"), RUNS.values(), ids=RUNS)


def facts_of(config: RunConfig, source: Source | None = None) -> dict[str, Any]:
    base = {"model": "0f", "clip": "1e", "text_encoders": "clip_l"}
    facts = run_facts(config, "sd15", base, batch(3))
    return facts | ({"resumed": source.fact} if source else {})


def job_of(config: RunConfig) -> Job:
    """As a node makes it: with the pictures that are held out."""
    share, pictures = config.validation.held_out, tiny.examples()
    away = held_out_places(len(pictures.latents), share, config.training.seed)
    pictures, watched = split(pictures, away)
    if watched is None:
        return tiny.job(config)
    base = tiny.parts()
    encoded = tiny.encode_captions(base, [*tiny.examples().captions, ""])
    return make_job(base, pictures, encoded, config, watched)


def trained(parent: Path, config: RunConfig, source: Source | None = None) -> RunFolder:
    """A run to its end, with states of every second step and its result."""
    facts = facts_of(config, source)
    folder = RunFolder.of(parent, "dog", facts)
    folder.describe(facts, status="done")
    job = job_of(config)
    training = Training(job)
    if source:
        source.begin(training, config, facts)
    described = {"metadata of": config.method}
    saver = StateSaver(folder, config.store, training, describe=lambda tokens: described)
    rows = []
    while not training.has_ended:
        rows.append(training.step().as_row())
        saver.after_step(rows)
    best, trainable = training.best, job.trainable
    tensors = best.tensors if best and best.tensors is not None else trainable.export(copy=True)
    folder.write_result(Result(training.done, tensors, described, trainable.tokens(), rows))
    return folder


def config_of(method: str, **settings: Any) -> RunConfig:
    values = {"steps": STEPS, "batch_size": 2, "state_every": 2, "keep_states": 9, **settings}
    return tiny.run_config(method, **values)


def tensors_at(folder: RunFolder, step: int) -> dict[str, torch.Tensor]:
    return dict(result_at(folder, step).tensors)


# -- what a state says of its result ------------------------------------------


@every_run
def test_state_is_the_result_of_its_step(
    tmp_path: Path, method: str, settings: dict[str, Any]
) -> None:
    settings = {**settings, "hand_out": "last step"}  # the best may be another one
    folder = trained(tmp_path, config_of(method, **settings))
    result = folder.result(STEPS)
    assert result is not None
    folder.drop_results(STEPS)
    from_state = result_at(folder, STEPS)
    tiny.assert_equal(dict(from_state.tensors), dict(result.tensors))
    assert from_state.metadata == result.metadata
    assert from_state.metrics == result.metrics
    assert not torch.equal(*(next(iter(tensors_at(folder, s).values())) for s in (4, STEPS)))


@pytest.mark.parametrize("kind", ["lora", "dora", "bf16 adapter", "textual inversion"])
def test_state_holds_nothing_twice(tmp_path: Path, kind: str) -> None:
    method, settings = RUNS[kind]
    folder = trained(tmp_path, config_of(method, **settings))
    state = torch.load(folder.path / "state" / "00000006.pt", weights_only=True)["state"]
    kept = state["learned"]["tensors"].values()
    again = [t for t in kept if isinstance(t, torch.Tensor)]
    for parameter in state["parameters"]:
        wide = parameter.float()
        assert not any(t.shape == wide.shape and torch.equal(t, wide) for t in again)
    assert len(again) < len(kept)


def test_state_with_what_it_learned_as_tensors_is_read(tmp_path: Path) -> None:
    folder = trained(tmp_path, config_of("lora"))
    before = tensors_at(folder, 4)
    state = torch.load(folder.path / "state" / "00000004.pt", weights_only=True)["state"]
    state["learned"]["tensors"] = before
    folder.write_state(state, [], keep=9)
    tiny.assert_equal(tensors_at(folder, 4), before)


def test_schedule_free_state_is_the_average_that_is_handed_out(tmp_path: Path) -> None:
    pytest.importorskip("schedulefree")
    config = config_of("dreambooth", optimizer="adamw_schedule_free", learning_rate=1e-2)
    folder = trained(tmp_path, config)
    result = folder.result(STEPS)
    assert result is not None
    folder.drop_results(STEPS)
    tiny.assert_equal(tensors_at(folder, STEPS), dict(result.tensors))


def test_state_of_an_earlier_version_says_that_it_is_no_result(tmp_path: Path) -> None:
    folder = trained(tmp_path, config_of("lora"))
    state = torch.load(folder.path / "state" / "00000004.pt", weights_only=True)["state"]
    del state["learned"]
    folder.write_state(state, [], keep=9)
    with pytest.raises(RunError, match="step 4 .*an earlier version wrote it.*\n.*resume_from"):
        result_at(folder, 4)
    (folder.path / "state" / "00000002.pt").write_bytes(b"PK")
    with pytest.raises(RunError, match="step 2 in .* cannot be read"):
        result_at(folder, 2)
    (folder.path / "state" / "00000002.pt").unlink()
    with pytest.raises(RunError, match="step 2 of .* is gone"):
        result_at(folder, 2)


def test_old_states_in_use_stay_and_end_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = trained(tmp_path, config_of("lora"))
    state = torch.load(folder.path / "state" / "00000006.pt", weights_only=True)["state"]

    unlink = Path.unlink

    def in_use(self: Path, missing_ok: bool = False) -> None:
        if self.suffix == ".pt":
            raise PermissionError(13, "in use", str(self))
        unlink(self, missing_ok)

    with monkeypatch.context() as patched:  # as Windows does with a file that is mapped
        patched.setattr(Path, "unlink", in_use)
        folder.write_state(state, [], keep=1)
    assert folder.state_steps == [2, 4, 6]
    folder.write_state(state, [], keep=1)
    assert folder.state_steps == [6]


def test_states_are_shown_as_far_as_there_is_room(tmp_path: Path) -> None:
    folder = trained(tmp_path, config_of("lora", steps=10, state_every=1, keep_states=99))
    assert steps_with_room(folder, 10) == (list(range(1, 11)), 0)
    assert steps_with_room(folder, 4) == ([3, 6, 9, 10], 6)
    assert steps_with_room(folder, 2) == ([9, 10], 8)
    assert steps_with_room(folder, -3) == ([10], 9)
    state = torch.load(folder.path / "state" / "00000006.pt", weights_only=True)["state"]
    del state["learned"]
    folder.write_state(state, [], keep=99)
    assert steps_with_room(folder, 4) == ([2, 5, 9, 10], 5)


def test_shorter_run_leaves_the_record_of_a_longer_result(tmp_path: Path) -> None:
    folder = trained(tmp_path, config_of("lora"))
    rows = list(result_at(folder, 6).metrics)
    folder.write_result(Result(2, tensors_at(folder, 2), {}, {}, rows[:2]))
    assert result_at(folder, 6).metrics == rows
    assert result_at(folder, 2).metrics == rows[:2]
    folder.drop_results(6)
    folder.write_metrics(rows[:3])  # as a run that goes on: no result is beyond
    assert list(RunFolder(folder.path, folder.fingerprint).state_steps) == [2, 4, 6]
    assert read_metrics(folder.path) == rows[:3]


def test_last_best_and_a_number_are_steps_that_are_kept(tmp_path: Path) -> None:
    folder = trained(tmp_path, config_of("lora"))
    assert kept_steps(folder) == [2, 4, 6]
    assert [chosen_step(folder, text) for text in ("last", " Last ", "2")] == [6, 6, 2]
    for wrong in ("5", "", "second", "-2"):
        with pytest.raises(RunError, match=r"allowed for run '.*': last, best, 2, 4, 6\."):
            chosen_step(folder, wrong)
    losses = [0.9, 0.1, 0.5, 0.5, 0.9, 0.9]
    rows: list[dict[str, Any]] = [{"step": n, "loss": x} for n, x in enumerate(losses, 1)]
    folder.write_metrics(rows)
    assert best_step(folder, [2, 4, 6]) == 2  # means of 0.5, 0.5 and more: the first of equals
    rows[3]["validation"], rows[5]["validation"] = 0.3, 0.4
    folder.write_metrics(rows)
    assert chosen_step(folder, "best") == 4
    with pytest.raises(RunError, match="neither a result nor a state"):
        chosen_step(RunFolder(tmp_path / "empty", "0" * 64), "last")


# -- resume_from --------------------------------------------------------------


@every_run
def test_run_that_begins_with_a_state_is_the_same_run_where_nothing_else_differs(
    tmp_path: Path, method: str, settings: dict[str, Any]
) -> None:
    config = config_of(method, **settings)
    whole = trained(tmp_path, config)
    rows = result_at(whole, STEPS).metrics
    for step in (4, 2):
        resumed = trained(tmp_path, config, Source.of(whole, step))
        assert resumed.path != whole.path
        result = result_at(resumed, STEPS)
        tiny.assert_equal(dict(result.tensors), tensors_at(whole, STEPS))
        assert list(result.metrics) == list(rows[step:])


def test_best_step_so_far_counts_where_the_same_pictures_are_watched(tmp_path: Path) -> None:
    _, settings = RUNS["best step"]
    source = Source.of(trained(tmp_path, config_of("lora", **settings)), 4)

    def begun(**more: Any) -> Any:
        config = config_of("lora", **settings | more)
        training = Training(job_of(config))
        source.begin(training, config, facts_of(config))
        return training.best

    state, _ = source.folder.state_of(4) or ({}, [])
    assert begun().loss == begun(learning_rate=1e-2).loss == state["best"]["loss"]
    assert begun(seed=7) is None  # chooses other pictures, and their noise
    assert begun(validate_every=2) is None


def test_runs_of_other_formats_are_not_begun_with(tmp_path: Path) -> None:
    config = config_of("dreambooth", weights="bf16", precision="bf16")
    facts = facts_of(config)
    for older in ({"format": facts["format"] - 1}, {"mended": []}):
        folder = RunFolder.of(tmp_path, "dog", {**facts, **older})
        folder.describe({**facts, **older}, status="done")
        with pytest.raises(SettingsError, match="earlier version"):
            Source(folder, 2, folder.facts).check_agrees(facts, 6)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"learning_rate": 1e-2}),
        ({}, {"weight_decay": 0.5}),
        ({}, {"lr_schedule": "linear"}),
        ({}, {"steps": 8, "batch_size": 1}),
        ({"optimizer": "muon"}, {"optimizer": "muon", "learning_rate": 1e-2}),
        ({"optimizer": "adafactor", "learning_rate": 0.0}, {"optimizer": "adafactor"}),
    ],
)
def test_run_that_begins_with_a_state_has_its_own_settings(
    tmp_path: Path, before: dict[str, Any], after: dict[str, Any]
) -> None:
    whole = trained(tmp_path, config_of("lora", **before))
    config = config_of("lora", **after)
    resumed = trained(tmp_path, config, Source.of(whole, 0 if "steps" in after else 4))
    rows = result_at(resumed, config.training.steps).metrics
    begun = 6 if "steps" in after else 4
    assert [row["step"] for row in rows] == list(range(begun + 1, config.training.steps + 1))
    if "steps" in after:
        return
    last = result_at(whole, STEPS).metrics
    assert rows[0]["loss"] == last[4]["loss"]  # the weights are the same before the first update
    assert rows[1]["loss"] != last[5]["loss"]
    if "lr_schedule" in after:
        rates = [1 - step / STEPS for step in (4, 5)]
        assert [r["learning_rate"] for r in rows] == pytest.approx(
            [config.training.learning_rate * rate for rate in rates]
        )


def test_average_begins_where_the_other_run_had_none(tmp_path: Path) -> None:
    whole = trained(tmp_path, config_of("dreambooth"))
    config = config_of("dreambooth", ema_decay=0.9, steps=5)
    resumed = trained(tmp_path, config, Source.of(whole, 4))
    started, plain = tensors_at(whole, 4), config_of("dreambooth", steps=5)
    ended = tensors_at(trained(tmp_path, plain, Source.of(whole, 4)), 5)
    for key, value in tensors_at(resumed, 5).items():  # d_1 = 2 / 11
        torch.testing.assert_close(value, started[key].lerp(ended[key], 9 / 11))


def test_all_that_must_agree_is_told_at_once(tmp_path: Path) -> None:
    whole = trained(tmp_path, config_of("lora"))
    source = Source.of(whole, 4)
    other = config_of("lora", rank=8, optimizer="adafactor", steps=4, **TEXT)
    facts = facts_of(other)
    facts["base_model"] = facts["base_model"] | {"model": "ff", "clip": "ee"}
    with pytest.raises(SettingsError) as refused:
        source.check_agrees(facts, 4)
    told = " ".join(refused.value.problems)
    assert len(refused.value.problems) == 5
    for words in (
        "optimizer is 'adafactor'",
        "rank is 8",
        "train_text_encoder is True",
        "model and clip of the base differ from",
        "has 4 steps, but begins at step 4",
    ):
        assert words in told  # fmt: skip
    with pytest.raises(SettingsError, match="is a run of lora; allowed on this node: runs of dre"):
        source.check_agrees(facts_of(config_of("dreambooth")), 9)
    source.check_agrees(facts_of(config_of("lora", dropout=0.5, learning_rate=1.0)), 5)


def test_state_that_is_gone_is_named_with_those_that_are_there(tmp_path: Path) -> None:
    whole = trained(tmp_path, config_of("lora"))
    with pytest.raises(RunError, match="no state of step 3 .*allowed in resume_step: 2, 4, 6, or"):
        trained(tmp_path, config_of("lora", steps=9), Source.of(whole, 3))
    whole.drop_states()
    with pytest.raises(RunError, match="has no state; allowed"):
        Source.of(whole, 0)
    with pytest.raises(SettingsError, match="resume_step is 3, but resume_from is empty"):
        config_of("lora", resume_step=3)


def test_which_run_it_is_depends_on_the_state_and_not_on_a_name(tmp_path: Path) -> None:
    whole = trained(tmp_path, config_of("lora"))
    named = config_of("lora", resume_from=whole.path.name)
    paths = [RunFolder.of(tmp_path, "dog", facts_of(named, Source.of(whole, s))).path
             for s in (0, 6, 4)]  # fmt: skip
    assert paths[0] == paths[1] != paths[2]
    assert RunFolder.of(tmp_path, "dog", facts_of(named)).path == whole.path
