"""One training inside the host, from sockets to result; every training node runs through here."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import logging
import shutil
import time
from collections.abc import Iterator, Mapping
from typing import Any

import folder_paths
import torch
from torch import Tensor

from ....trainers.contracts import Parts, Prompt, Text
from ....trainers.data.dataset import Dataset
from ....trainers.data.examples import Examples, encode_pictures
from ....trainers.data.validation import held_out_places, split
from ....trainers.errors import PersonalizeError, SaveError
from ....trainers.loop import Best, Training, make_job, with_teacher
from ....trainers.methods.results import Embedding
from ....trainers.models.compiled import compile_blocks, compiling
from ....trainers.models.deterministic import check_deterministic, deterministic
from ....trainers.runs.catalog.times import rate
from ....trainers.runs.folder import Result
from ....trainers.runs.metadata import (
    embedding_metadata,
    lora_metadata,
    model_metadata,
    needs_metadata,
    times_metadata,
)
from ....trainers.runs.states import StateSaver, make_room_for_states
from ....trainers.runs.trackers import check_tracker, tracker
from ....trainers.settings.run import RunConfig
from ....trainers.settings.store import ANEW, NOTHING
from ....trainers.step import Job, all_prompts
from ..folders import runs_folder
from ..memory import Interrupt, cancel_together, device, make_room, training_session
from ..models.parts import parts_of, placements
from ..models.support import warn_of_dora, warn_of_what_is_left_out
from ..models.text import encode_captions
from ..models.training_mode import uninterrupted
from ..models.vae import encoder_of, scaler_of
from ..models.weights import changed_weights, weights_bytes
from ..workbench.outcome import Outcome, needed_tokens, outcome_of
from .base import GraphNode
from .fitting import fitted
from .inputs import Sockets
from .pages import PAGES
from .previews import Previews
from .progress import clock
from .run import Run, make_run

log = logging.getLogger(__name__)

Tokens = Mapping[str, Mapping[str, Tensor]]  # rows of learned tokens, by token and text encoder

# What the file of each method's result says of it.
METADATA = {
    "lora": lora_metadata,
    "dreambooth": model_metadata,
    "textual_inversion": embedding_metadata,
}


def run_training(sockets: Sockets, config: RunConfig, node: GraphNode) -> Outcome:
    """Train as `config` says on what `sockets` carry, or take from disk what was trained before.

    Raises:
        PersonalizeError: input that cannot be trained on, or a loss that is not finite.
        torch.cuda.OutOfMemoryError: with advice.
    """
    check_tracker(config.store.log_with)
    with torch.inference_mode(False):
        run = make_run(sockets, config, node)
        if kept := _kept(run, node):
            return kept
        if config.training.deterministic:
            check_deterministic(device())
        if config.changes_weights:
            _check_disk(sockets, config)
        with _held(run):
            if kept := _kept(run, node):
                return kept
            try:
                with training_session(), PAGES.watching(node, run.folder.path.name):
                    with run.processes.sharing_out():
                        run = fitted(run)
                        return _train(run)
            except BaseException as error:  # Cancel, which is none of Exception's children
                _say_why(run, error)
                with contextlib.suppress(SaveError):
                    stopped = run.folder.stopped()
                    run.describe(status="interrupted", stopped=stopped)
                raise


@contextlib.contextmanager
def _held(run: Run) -> Iterator[None]:
    """Hold the run for all processes that train it together."""
    with contextlib.ExitStack() as held:
        if run.processes.is_first:
            waiting = "waiting: this run trains elsewhere"
            held.enter_context(run.folder.locked(lambda: run.reporter.status(waiting)))
        run.processes.wait()
        yield


def _say_how_long(run: Run) -> None:
    """Say what the steps that are left will take, where a run like it was made here."""
    if found := rate(runs_folder(), run.facts):
        done = max((step for step in run.folder.state_steps if step <= run.asked_steps), default=0)
        run.reporter.expect(found.seconds * (run.asked_steps - done), found.run)


def _say_why(run: Run, error: BaseException) -> None:
    """Leave a line in the node's body that says how it ended, where there is none yet."""
    if not isinstance(error, Interrupt | PersonalizeError):
        run.reporter.say(f"ended by an error: {error}")
    elif isinstance(error, Interrupt) and not run.reporter.has_steps:
        run.reporter.say("cancelled before the first step")


def _kept(run: Run, node: GraphNode) -> Outcome | None:
    """What an earlier run with the same facts learned, if it came to its end."""
    steps = run.kept_steps
    result = None if steps is None else run.folder.result(steps)
    if run.processes.any(result is None) or result is None:
        return None
    log.info("Personalize: %s steps of '%s' were trained before.", steps, run.folder.path.name)
    run.note_graph()
    PAGES.show(node, run.folder.path.name)
    run.reporter.status(f"trained before, {steps} steps: taken from disk, {run.shown_path}")
    return _outcome(run, result)


def _outcome(run: Run, result: Result) -> Outcome:
    needed = _learned_tokens(run, result.tokens)
    return outcome_of(run.folder, result, run.text_encoders, needed)


def _train(run: Run) -> Outcome:
    folder, config, reporter = run.folder, run.config, run.reporter
    started = time.monotonic()
    stopped = folder.stopped()
    _say_how_long(run)
    if run.processes.is_first:
        if config.store.if_run_exists == ANEW:
            folder.drop_states()
        run.describe(status="training", stopped=stopped)
        _forget_old_states(run)
    run.processes.wait()
    preview = run.sockets.preview
    previews = None
    if preview is not None and (run.processes.is_first or run.processes.shard):
        previews = Previews(preview, run.sockets, run.architecture, folder.previews, run.processes)
    with deterministic(config.training.deterministic, device()):  # steps see to it themselves
        job = _job(run)
        if config.objective.uses_teacher:
            job = with_teacher(job, reporter.teacher)
    with compiling(config.training.compile):
        best, steps, metrics = _steps(run, job, previews)
    asked = run.asked_steps
    stopped.pop(asked, None)
    if steps < asked:
        stopped[asked] = steps
    gc.collect()  # the optimizer's state goes before the result comes
    seconds = time.monotonic() - started
    result = _result(run, job, best, metrics, steps=steps, seconds=seconds)
    if not run.processes.is_first:
        return _outcome(run, result)
    if config.store.if_run_exists == ANEW:  # else the old one would count if this cannot be kept
        folder.drop_results(asked, steps)
    try:
        folder.write_result(result)
        run.describe(status="stopped" if steps < asked else "done", stopped=stopped)
    except SaveError as error:  # what was learned goes on into the graph all the same
        log.error("Personalize: the result is in the graph, but it was not kept. %s", error)
        reporter.say(f"the result is in the graph, but it was not kept. {error}")
    else:
        reporter.say(_ending(run, steps, time.monotonic() - started))
    return _outcome(run, result)


def _ending(run: Run, steps: int, seconds: float) -> str:
    """What happened, for the person at the node."""
    if steps < run.asked_steps:
        done = f"stopped at step {steps} of {run.asked_steps} and kept; run again hands it out"
    else:
        done = f"done: {steps} steps in {clock(seconds)}"
    return f"{done}, loss {run.reporter.loss:.4f}, {run.shown_path}"


def _job(run: Run) -> Job:
    """Pictures and captions encoded, the model made ready."""
    sockets, reporter = run.sockets, run.reporter
    encode, scale = encoder_of(sockets.vae), scaler_of(sockets.model)

    def encoded_pictures(dataset: Dataset) -> Examples:
        return encode_pictures(dataset, encode, reporter.pictures, scale)

    away = held_out_places(
        len(sockets.dataset), run.config.validation.held_out, run.config.training.seed
    )
    examples, watched = split(encoded_pictures(sockets.dataset), away)
    if sockets.validation_dataset is not None:
        watched = encoded_pictures(sockets.validation_dataset)
    if sockets.class_dataset is not None:
        examples = examples.with_class_images(encoded_pictures(sockets.class_dataset))
    make_room()  # the VAE has done its part
    reporter.status("preparing the model")
    warn_of_what_is_left_out(sockets.model, sockets.clip, run.architecture)
    if run.config.method == "lora" and run.config.own.variant == "dora":
        warn_of_dora(sockets.model)
    _note_what_is_unusual(run)
    parts, encoded = _parts(run, examples, watched)
    if run.config.training.compile:
        compile_blocks(parts.denoiser, parts.device)
    return make_job(parts, examples, encoded, run.config, watched, run.processes)


def _note_what_is_unusual(run: Run) -> None:
    training = run.config.training
    rate = 0.0 if training.finds_rate else training.learning_rate
    resolution_px = run.sockets.dataset.resolution_px
    if rate and (found := run.architecture.unusual(run.config.method, resolution_px, rate)):
        log.info("Personalize: for %s: %s.", run.architecture.title, "; ".join(found))


def _steps(
    run: Run, job: Job, previews: Previews | None
) -> tuple[Best | None, int, list[dict[str, Any]]]:
    """Train to the end, or until Stop and keep: the best step, the last, and what happened."""
    training, store = Training(job), run.config.store
    began = time.monotonic()
    if not run.processes.is_first:
        store = dataclasses.replace(store, log_with=NOTHING)
    metrics = _go_on(run, training)

    def described(tokens: Tokens) -> dict[str, str]:
        return _metadata(run, job, tokens, training.done, time.monotonic() - began)

    saver = StateSaver(run.folder, store, training, run.processes, described)
    run.reporter.shows_rate = run.config.training.finds_rate
    PAGES.record(metrics)
    with tracker(store.log_with, run.folder.path) as log_row:
        while not training.has_ended:
            if metrics and PAGES.asked_to_stop:  # in a page, which one process serves
                break
            progress = training.step()
            metrics.append(progress.as_row())
            log_row(metrics[-1])
            try:
                with cancel_together(run.processes):
                    with uninterrupted():  # asked at the end, when all have done the same
                        run.reporter.step(progress)
                    saver.after_step(metrics)
                    if previews is not None and previews.after_step(job, progress):
                        PAGES.has_previews()
            except BaseException as error:  # Cancel, which is none of Exception's children
                if isinstance(error, Interrupt) or not training.is_shared_out:
                    saver.save(metrics, ended=True)
                if isinstance(error, Interrupt):
                    run.reporter.say(
                        f"cancelled at step {training.done}; {_again(run, saver, training)}"
                    )
                raise
    saver.at_end(metrics)
    return training.best, training.done, metrics


def _again(run: Run, saver: StateSaver, training: Training) -> str:
    """What the next run does after a Cancel."""
    if run.config.store.if_run_exists == ANEW:
        return "run again starts anew"
    if saver.goes_on_from == training.done:
        return "run again goes on"
    if saver.goes_on_from:
        return f"run again goes on from step {saver.goes_on_from}"
    return "run again starts anew"


def _go_on(run: Run, training: Training) -> list[dict[str, Any]]:
    """Put `training` where an earlier one was interrupted; what happened until then."""
    found = run.folder.state(at_most=training.total)
    if found is None:
        if run.source is not None:
            run.source.begin(training, run.config, run.facts)
            name = run.source.folder.path.name
            log.info("Personalize: begins at step %d of '%s'.", training.done, name)
            run.reporter.status(f"beginning at step {training.done} of {name}")
        return []
    state, metrics = found
    training.load_state(state)
    log.info("Personalize: '%s' goes on from step %d.", run.folder.path.name, training.done)
    run.reporter.status(f"going on from step {training.done}")
    return metrics


def _result(
    run: Run,
    job: Job,
    best: Best | None,
    metrics: list[dict[str, Any]],
    *,
    steps: int,
    seconds: float,
) -> Result:
    """What the method exports, or exported at the best step, with the metadata of its file."""
    if best is not None and best.tensors is not None:
        tensors, tokens, step = best.tensors, best.tokens or {}, best.step
    else:
        tensors, tokens, step = job.trainable.export(), job.trainable.tokens(), steps
    metadata = _metadata(run, job, tokens, step, seconds)
    if run.config.changes_weights:
        tensors = changed_weights(run.sockets.model, run.sockets.clip, tensors)
    return Result(steps, tensors, metadata, tokens, metrics)


def _metadata(run: Run, job: Job, tokens: Tokens, step: int, seconds: float) -> dict[str, str]:
    """What the file of a result says of itself."""
    dataset, prediction = run.sockets.dataset, job.parts.objective.prediction
    metadata = METADATA[run.config.method](run.config, run.architecture, dataset, prediction)
    metadata |= needs_metadata(_learned_tokens(run, tokens))
    metadata |= times_metadata(step, seconds)
    if base := run.reporter.base_file:
        metadata["ss_sd_model_name"] = base
    return metadata


def _learned_tokens(run: Run, trained: Tokens) -> tuple[Embedding, ...]:
    """What the clip knows of the words in the captions beside its vocabulary, as trained now."""
    return needed_tokens(run.sockets.clip, trained, run.captions)


def _forget_old_states(run: Run) -> None:
    limit_bytes = run.config.store.old_states_gb * 1e9
    needed = [run.source.folder.path] if run.source else []
    for folder in make_room_for_states(runs_folder(), limit_bytes, run.folder.path, needed):
        log.warning(
            "Personalize: the states of the earlier run '%s' were deleted, since those of all "
            "runs take more than old_states_gb (%g GB). Its result stays.",
            folder.name, run.config.store.old_states_gb,
        )  # fmt: skip


def _check_disk(sockets: Sockets, config: RunConfig) -> None:
    # A result of gigabytes: better to hear of it before the training than after.
    needed = weights_bytes(sockets.model, sockets.clip, config.own.train_text_encoder)
    output = folder_paths.get_output_directory()
    free = shutil.disk_usage(output).free
    if free < needed:
        raise SaveError(
            f"The disk of '{output}' has {free / 1e9:.1f} GB left; the trained weights need "
            f"{needed / 1e9:.1f} GB.\nFree some space and queue again."
        )


def _parts(
    run: Run, examples: Examples, watched: Examples | None
) -> tuple[Parts, dict[Prompt, Text] | None]:
    """Modules to train; encodings of all captions if the text encoders are frozen.

    Frozen text encoders encode every caption once and have left before the denoiser comes.
    """
    sockets, config = run.sockets, run.config
    encoded = None
    if not config.own.trains_text:
        prompts = all_prompts(
            [examples, *([watched] if watched else [])],
            config.objective, run.architecture, config.training.seed,
        )  # fmt: skip
        encoded = encode_captions(
            sockets.clip, prompts, run.reporter.captions, run.architecture.control_encoder
        )
        make_room()
    denoiser, text = placements(config, run.processes.shard)
    model, clip = sockets.model, sockets.clip
    placed = text if encoded is None else None
    return parts_of(model, clip, run.architecture, denoiser, placed), encoded
