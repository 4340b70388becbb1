"""One training inside the host, from sockets to result; every training node runs through here."""

from __future__ import annotations

import dataclasses
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
from ...trainers.errors import DatasetError
from ...trainers.export import Adapter, lora_metadata
from ...trainers.loop import Progress, make_job, train
from ...trainers.precision import compute_dtype
from ...trainers.tokens import has_token
from . import bridge
from .embeddings import embeddings_of
from .progress import Reporter
from .session import device, make_room, training_session
from .vae import encoder_of

# What the file of each method's result says of it.
METADATA = {"lora": lora_metadata, "textual_inversion": embedding_metadata}


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

    adapter: Adapter
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
    _check_class_dataset(sockets)
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
        Path(folder_paths.get_output_directory()) / "personalize",
        dataset.name,
        run_facts(config, family.name, base, dataset, class_dataset),
    )
    job = make_job(parts, family, examples, encoded, config)
    rows: list[dict[str, Any]] = []
    losses = train(job, _recorder(rows, reporter.step))
    needed = _learned_tokens(sockets.clip, examples, job.trainable.tokens())
    metadata = METADATA[config.method](config, family, dataset, parts.objective.prediction)
    metadata |= needs_metadata(needed)
    seconds = time.monotonic() - started
    metadata |= {"ss_steps": str(len(losses)), "ss_training_time": f"{seconds:.0f}"}
    adapter = Adapter(job.trainable.export(), metadata, needed)
    folder.write_result(adapter, metadata, rows)
    return Outcome(adapter, losses, folder.path)


def _learned_tokens(
    clip: Any, examples: Examples, trained: Mapping[str, Mapping[str, Tensor]]
) -> tuple[Embedding, ...]:
    """What `clip` knows of the words in the captions beside its vocabulary, as trained now."""
    return tuple(
        dataclasses.replace(embedding, rows=trained.get(embedding.token, embedding.rows))
        for embedding in embeddings_of(clip)
        if any(has_token(caption, embedding.token) for caption in examples.captions)
    )


def _check_class_dataset(sockets: Sockets) -> None:
    instance, classes = sockets.dataset, sockets.class_dataset
    if classes is not None and classes.resolution_px != instance.resolution_px:
        raise DatasetError(
            f"Input 'class_dataset' ('{classes.name}') has resolution {classes.resolution_px}, "
            f"but 'dataset' ('{instance.name}') has {instance.resolution_px}.\n"
            "Set the same resolution on both nodes."
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

    def make(*names: str) -> Parts:
        return bridge.parts_of(sockets.model, sockets.clip, family, names, dtypes, place)

    if config.own.trains_text:
        parts = make(DENOISER, *family.text_encoders)
        return parts, None, weights_fingerprint(parts.modules)
    text = make(*family.text_encoders)
    encoded = encode_captions(text, family, [*examples.captions, ""])
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
