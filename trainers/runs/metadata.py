"""What a result's file says of itself: kohya's ss_* and the modelspec standard 1.0.1."""

from __future__ import annotations

import collections
import datetime
import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence

from ..data.captions import one_line
from ..data.dataset import Dataset
from ..errors import AdapterError
from ..methods.results import Embedding
from ..models.architectures import Architecture
from ..objective.noise import PREDICTIONS
from ..settings.memory import NONE
from ..settings.methods.lora import WIDE, LoraConfig
from ..settings.methods.textual_inversion import TextualInversionConfig
from ..settings.run import RunConfig

RANK_AND_ALPHA = ("ss_network_dim", "ss_network_alpha")
LORA_MODULE = "networks.lora"  # kohya's name
ALGORITHMS = {"lokr": "lokr", "loha": "loha", "oft": "diag-oft"}  # LyCORIS' names
WEIGHTS = "personalize.adapter_weights"  # what they trained in, if not in fp32; kohya has no name
NEEDS = "personalize.embeddings"  # of a LoRA whose captions have learned tokens


def lora_metadata(
    config: RunConfig, architecture: Architecture, dataset: Dataset, prediction: str
) -> dict[str, str]:
    """Metadata of a LoRA file: kohya's ss_* that readers use, and modelspec 1.0.1.

    The most frequent caption is the trigger phrase.

    Args:
        prediction: "epsilon", "v" or "flow".
    """
    return {
        **_network(config.own),
        **model_metadata(config, architecture, dataset, prediction),
        "modelspec.architecture": f"{architecture.modelspec}/lora",
    }


def _network(lora: LoraConfig) -> dict[str, str]:
    """The kind and size of an adapter, as kohya's and LyCORIS' trainers say it."""
    algorithm = ALGORITHMS.get(lora.variant)
    times = 2 if lora.initialization == "pissa" else 1  # its file also takes away the start
    # Readers scale by alpha / rank, so rsLoRA's alpha / sqrt(rank) is this one's.
    alpha = lora.alpha * (math.sqrt(lora.rank) if lora.rank_stabilized else 1)
    told = {
        "ss_network_module": "lycoris.kohya" if algorithm else LORA_MODULE,
        "ss_network_dim": str(lora.rank * times),
        "ss_network_alpha": str(0.0 if lora.variant == "oft" else alpha * times),
    }
    if lora.adapter_weights != WIDE:
        told[WEIGHTS] = lora.adapter_weights
    if algorithm:
        facts = {"algo": algorithm}
        if lora.variant == "lokr":
            facts["factor"] = str(lora.lokr_factor)
        told["ss_network_args"] = json.dumps(facts)
    return told


def model_metadata(
    config: RunConfig, architecture: Architecture, dataset: Dataset, prediction: str
) -> dict[str, str]:
    """Metadata of any result: how it was trained, by kohya's ss_*, and modelspec 1.0.1.

    Args:
        prediction: "epsilon", "v" or "flow".
    """
    counts = collections.Counter(one_line(picture.caption) for picture in dataset.pictures)
    training, version = config.training, architecture.base_model_version
    return {
        **({"ss_base_model_version": version} if version else {}),
        "ss_v2": str(architecture.name == "sd2"),
        "ss_learning_rate": str(training.learning_rate),
        "ss_optimizer": training.optimizer,
        "ss_lr_scheduler": training.lr_schedule,
        "ss_seed": str(training.seed),
        "ss_resolution": f"({dataset.resolution_px}, {dataset.resolution_px})",
        "ss_num_train_images": str(len(dataset)),
        "ss_batch_size_per_device": str(training.batch_size),
        "ss_gradient_accumulation_steps": str(training.gradient_accumulation),
        "ss_min_snr_gamma": str(config.objective.min_snr_gamma or None),
        **_more_settings(config),
        "ss_tag_frequency": json.dumps({dataset.name: counts}, ensure_ascii=False),
        "ss_dataset_dirs": json.dumps(
            {dataset.name: {"n_repeats": 1, "img_count": len(dataset)}}, ensure_ascii=False
        ),
        **modelspec(architecture, "", dataset, prediction),
        "modelspec.trigger_phrase": counts.most_common(1)[0][0] if counts else "",
    }


def _more_settings(config: RunConfig) -> dict[str, str]:
    """kohya's names for the other settings that managers list; its word for "not so" is None."""
    training, objective, own = config.training, config.objective, config.own
    trains_text = bool(getattr(own, "train_text_encoder", False))
    return {
        "ss_unet_lr": str(training.learning_rate),
        "ss_text_encoder_lr": str(config.text_rate if trains_text else None),
        "ss_lr_warmup_steps": str(training.warmup_steps),
        "ss_max_grad_norm": str(training.max_grad_norm),
        "ss_gradient_checkpointing": str(config.checkpointed != NONE),
        "ss_mixed_precision": {"fp32": "no"}.get(training.precision, training.precision),
        "ss_total_batch_size": str(training.batch_size * training.gradient_accumulation),
        "ss_num_epochs": str(training.epochs or None),
        "ss_network_dropout": str(getattr(own, "dropout", 0.0) or None),
        "ss_noise_offset": str(objective.noise_offset or None),
        "ss_caption_dropout_rate": str(objective.caption_dropout),
        "ss_timestep_sampling": objective.timestep_sampling,
        "ss_shuffle_caption": str(objective.shuffle_caption),
        "ss_keep_tokens": str(objective.keep_tokens),
        "ss_prior_loss_weight": str(objective.prior_weight),
        "ss_cache_latents": "True",
    }


def modelspec(
    architecture: Architecture, kind: str, dataset: Dataset, prediction: str
) -> dict[str, str]:
    """The part of the modelspec standard 1.0.1 that every result's file has.

    Args:
        kind: what was trained, as the standard's architecture names it: "lora" ..., or "" for
            whole models.
    """
    now = datetime.datetime.now(datetime.timezone.utc)
    return {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": architecture.modelspec + (f"/{kind}" if kind else ""),
        "modelspec.implementation": architecture.implementation,
        "modelspec.title": dataset.name,
        "modelspec.description": f"Trained on {len(dataset)} pictures with Personalize for ComfyUI",
        "modelspec.date": now.isoformat(timespec="seconds"),
        "modelspec.resolution": f"{dataset.resolution_px}x{dataset.resolution_px}",
        # The standard has words for these two alone.
        **({"modelspec.prediction_type": prediction} if prediction in PREDICTIONS else {}),
    }


def embedding_metadata(
    config: RunConfig, architecture: Architecture, dataset: Dataset, prediction: str
) -> dict[str, str]:
    """Metadata of an embedding's file: modelspec 1.0.1, and how it was trained."""
    own: TextualInversionConfig = config.own
    return {
        **modelspec(architecture, "textual-inversion", dataset, prediction),
        "modelspec.title": own.token,
        "modelspec.trigger_phrase": own.token,
        "personalize.token": own.token,
        "personalize.vectors": str(own.vectors),
        "personalize.initializer": own.initializer,
        "personalize.learning_rate": str(config.training.learning_rate),
        "personalize.seed": str(config.training.seed),
    }


def times_metadata(step: int, seconds: float) -> dict[str, str]:
    """When a training that ends now was made, and how long it took."""
    ended = time.time()
    return {
        "ss_steps": str(step),
        "ss_max_train_steps": str(step),
        "ss_training_time": f"{seconds:.0f}",
        "ss_training_started_at": f"{ended - seconds:.0f}",
        "ss_training_finished_at": f"{ended:.0f}",
    }


def needs_metadata(embeddings: Iterable[Embedding]) -> dict[str, str]:
    """What a LoRA's file says of the learned tokens that its captions have."""
    needed = [
        {"token": e.token, "vectors": e.vectors, "sha256": e.fingerprint()} for e in embeddings
    ]
    return {NEEDS: json.dumps(needed, ensure_ascii=False)} if needed else {}


# What LoRAs of one kind have in common, however they were made.
OF_THE_KIND = (
    "ss_base_model_version", "ss_v2", "ss_network_module", "modelspec.sai_model_spec",
    "modelspec.architecture", "modelspec.implementation", "modelspec.resolution",
    "modelspec.prediction_type",
)  # fmt: skip
JOINED = {"modelspec.title": "_and_", "modelspec.trigger_phrase": ", "}


def check_one_base(sources: Sequence[Mapping[str, str]]) -> None:
    """Raise AdapterError where files say that they are for different kinds of base models."""
    said = [source.get("ss_base_model_version", "") for source in sources]
    if len({version for version in said if version}) > 1:
        listed = ", ".join(f"LoRA {n} for {v}" for n, v in enumerate(said, 1) if v)
        raise AdapterError(
            f"The LoRAs are for different base models: {listed}.\n"
            "Merge those of one kind of base model."
        )


def merged_metadata(sources: Sequence[Mapping[str, str]], ranks: Iterable[int]) -> dict[str, str]:
    """Metadata of one LoRA made of others: what they have in common, their titles and triggers.

    Args:
        sources: metadata of each.
        ranks: of the new one's layers.
    """
    first = sources[0]
    common = {
        key: value
        for key, value in first.items()
        if key in OF_THE_KIND and all(other.get(key) == value for other in sources)
    }
    for key, between in JOINED.items():
        if found := list(dict.fromkeys(source[key] for source in sources if source.get(key))):
            common[key] = between.join(found)
    if "ss_network_module" in common:  # of a LoHa too a LoRA is made
        common["ss_network_module"] = LORA_MODULE
    return {**common, **rank_metadata(ranks)}


def extracted_metadata(architecture: Architecture, ranks: Iterable[int]) -> dict[str, str]:
    """Metadata of a LoRA that is the difference of two models."""
    version = architecture.base_model_version
    return {
        "ss_network_module": LORA_MODULE,
        **({"ss_base_model_version": version} if version else {}),
        "ss_v2": str(architecture.name == "sd2"),
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{architecture.modelspec}/lora",
        "modelspec.implementation": architecture.implementation,
        "modelspec.title": "extracted",
        **rank_metadata(ranks),
    }


def rank_metadata(ranks: Iterable[int]) -> dict[str, str]:
    """Rank and alpha, which are equal; "Dynamic", as kohya says, where layers have their own."""
    found = set(ranks)
    rank = str(found.pop()) if len(found) == 1 else "Dynamic"
    now = datetime.datetime.now(datetime.timezone.utc)
    return {
        "ss_network_dim": rank,
        "ss_network_alpha": rank,
        "modelspec.date": now.isoformat(timespec="seconds"),
    }
