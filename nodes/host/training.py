"""One training inside the host, from sockets to result; every training node runs through here."""

from __future__ import annotations

import dataclasses
import gc
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import folder_paths
import torch
from torch import Tensor

from ...trainers.cache import Examples, encode_captions, encode_pictures
from ...trainers.checkpoint import RunFolder, run_facts, weights_fingerprint
from ...trainers.config import RunConfig
from ...trainers.contracts import DENOISER, Family, Parts, Text
from ...trainers.data import Dataset
from ...trainers.embedding import Embedding, embedding_metadata, needs_metadata
from ...trainers.errors import DatasetError, SaveError, SettingsError
from ...trainers.export import Adapter, lora_metadata, model_metadata
from ...trainers.loop import Job, Progress, make_job, taught_job, train
from ...trainers.precision import DTYPES, compute_dtype
from ...trainers.tokens import has_token
from . import bridge
from .apply import changed_weights, trained_modules, weights_bytes
from .embeddings import embeddings_of
from .progress import Reporter
from .session import device, make_room, training_session
from .vae import encoder_of

# What the file of each method's result says of it.
METADATA = {
    "lora": lora_metadata,
    "dreambooth": model_metadata,
    "textual_inversion": embedding_metadata,
}


@dataclass(frozen=True)
class Sockets:
    """What is wired into a training node."""

    model: Any
    clip: Any
    vae: Any
    dataset: Dataset
    class_dataset: Dataset | None = None


@dataclass(frozen=True)
class Outcome:
    """What a training came to: its result, the loss of every step, the folder of the run."""

    learned: Adapter
    losses: list[float]
    run: Path


def run_training(sockets: Sockets, config: RunConfig, node_id: str | None) -> Outcome:
    """Train as `config` says on what `sockets` carry.

    Raises:
        PersonalizeError: input that cannot be trained on, or a loss that is not finite.
        torch.OutOfMemoryError: with advice.
    """
    family = bridge.family_of(sockets.model)
    bridge.check_clip(sockets.clip, family)
    _check_prior(sockets, config)
    if config.changes_weights:
        _check_disk(sockets, family, config)
    with training_session():
        return _train(sockets, family, config, Reporter(node_id))


def _train(sockets: Sockets, family: Family, config: RunConfig, reporter: Reporter) -> Outcome:
    started = time.monotonic()
    dataset = sockets.dataset
    class_dataset = sockets.class_dataset if config.objective.prior_weight else None
    encode = encoder_of(sockets.vae)
    examples = encode_pictures(dataset, encode, family, reporter.pictures)
    if class_dataset is not None:
        examples = examples.with_class_images(
            encode_pictures(class_dataset, encode, family, reporter.pictures)
        )
    make_room()  # the VAE has done its part
    reporter.status("preparing the model")
    parts, encoded, base = _parts(sockets, family, config, examples)
    folder = RunFolder.create(
        runs_folder(),
        dataset.name,
        run_facts(config, family.name, base, dataset, class_dataset),
    )
    job = make_job(parts, family, examples, encoded, config)
    if config.objective.uses_teacher:
        job = taught_job(job, reporter.teacher)
    rows: list[dict[str, Any]] = []
    losses = train(job, _recorder(rows, reporter.step))
    gc.collect()  # the optimizer's state goes before the result comes
    facts = {"ss_steps": str(len(losses)), "ss_training_time": f"{time.monotonic() - started:.0f}"}
    learned = _learned(job, sockets, facts)
    folder.write_result(learned, learned.metadata, rows)
    return Outcome(learned, losses, folder.path)


def _learned(job: Job, sockets: Sockets, facts: dict[str, str]) -> Adapter:
    """What the method exports, with the metadata of its file."""
    config = job.config
    needed = _learned_tokens(sockets.clip, job.examples, job.trainable.tokens())
    metadata = METADATA[config.method](
        config, job.family, sockets.dataset, job.parts.objective.prediction
    )
    tensors = job.trainable.export()
    if config.changes_weights:
        tensors = changed_weights(sockets.model, sockets.clip, tensors)
    return Adapter(tensors, metadata | needs_metadata(needed) | facts, needed)


def _learned_tokens(
    clip: Any, examples: Examples, trained: Mapping[str, Mapping[str, Tensor]]
) -> tuple[Embedding, ...]:
    """What `clip` knows of the words in the captions beside its vocabulary, as trained now."""
    return tuple(
        dataclasses.replace(embedding, rows=trained.get(embedding.token, embedding.rows))
        for embedding in embeddings_of(clip)
        if any(has_token(caption, embedding.token) for caption in examples.captions)
    )


def runs_folder() -> Path:
    """Where every run has its folder."""
    return Path(folder_paths.get_output_directory()) / "personalize"


def _check_prior(sockets: Sockets, config: RunConfig) -> None:
    instance, classes = sockets.dataset, sockets.class_dataset
    if classes is not None and config.objective.uses_teacher:
        raise SettingsError(
            ("prior is 'teacher', which takes no class_dataset, but one is wired; "
             "allowed: 'class images', or no class_dataset",)
        )  # fmt: skip
    if classes is not None and classes.resolution_px != instance.resolution_px:
        raise DatasetError(
            f"Input 'class_dataset' ('{classes.name}') has resolution {classes.resolution_px}, "
            f"but 'dataset' ('{instance.name}') has {instance.resolution_px}.\n"
            "Set the same resolution on both nodes."
        )


def _check_disk(sockets: Sockets, family: Family, config: RunConfig) -> None:
    # A result of gigabytes: better to hear of it before the training than after.
    trained = trained_modules(family, config.own.train_text_encoder)
    needed = weights_bytes(sockets.model, sockets.clip, trained)
    output = folder_paths.get_output_directory()
    free = shutil.disk_usage(output).free
    if free < needed:
        raise SaveError(
            f"The disk of '{output}' has {free / 1e9:.1f} GB left; the trained weights need "
            f"{needed / 1e9:.1f} GB.\nFree some space and queue again."
        )


def _parts(
    sockets: Sockets, family: Family, config: RunConfig, examples: Examples
) -> tuple[Parts, dict[str, Text] | None, str]:
    """Modules to train; encodings of all captions if the text encoder is frozen; a fingerprint.

    A frozen text encoder encodes every caption once and is let go before the denoiser comes.
    """
    place = device()
    dtypes = {DENOISER: compute_dtype(config.training.precision, place)}
    # The host computes prompts in fp32 whatever their weights are stored in; so does training.
    dtypes |= dict.fromkeys(family.text_encoders, torch.float32)
    private: dict[str, torch.dtype] = {}
    if config.changes_weights:
        held_in = DTYPES[config.own.weights]
        private = dict.fromkeys(trained_modules(family, config.own.train_text_encoder), held_in)
        # fp32 masters are narrowed by autocast; bf16 weights are widened where there is no bf16.
        wide = held_in == torch.float32 or dtypes[DENOISER] == torch.float32
        dtypes |= dict.fromkeys(private, torch.float32 if wide else held_in)

    def make(*names: str) -> Parts:
        return bridge.parts_of(sockets.model, sockets.clip, family, names, dtypes, place, private)

    if config.own.trains_text:
        parts = make(DENOISER, *family.text_encoders)
        return parts, None, weights_fingerprint(parts.modules)
    text = make(*family.text_encoders)
    encoded = encode_captions(text, family, [*examples.captions, config.objective.class_prompt, ""])
    text_fingerprint = weights_fingerprint(text.modules)
    del text
    parts = make(DENOISER)
    return parts, encoded, weights_fingerprint(parts.modules) + text_fingerprint


def _recorder(
    rows: list[dict[str, Any]], report: Callable[[Progress], None]
) -> Callable[[Progress], None]:
    def record(progress: Progress) -> None:
        rows.append(dataclasses.asdict(progress))
        report(progress)

    return record
