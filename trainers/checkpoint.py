"""The folder of one run: its settings, what happened at every step, and its result.

output/personalize/<method>-<name>-<first 8 of the fingerprint>/
    run.json             settings, versions, base model, dataset listing
    metrics.jsonl        one line a step
    result.safetensors   what was learned
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .config import RunConfig
from .data import Dataset
from .export import save_tensors, write_whole

SAMPLES_PER_TENSOR = 256  # finetunes change every tensor, so a few numbers of each tell them apart
PACKAGES = ("torch", "diffusers", "transformers", "peft", "safetensors")


def weights_fingerprint(modules: Mapping[str, nn.Module]) -> str:
    """A hash of the modules' weights; see `tensors_fingerprint`."""
    return tensors_fingerprint(
        {
            f"{name}.{key}": tensor
            for name, module in sorted(modules.items())
            for key, tensor in module.state_dict().items()
        }
    )


def tensors_fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """A hash of evenly spaced numbers of every tensor, in fp32."""
    digest = hashlib.sha256()
    for key, tensor in tensors.items():
        flat = tensor.detach().flatten()
        stride = max(1, len(flat) // SAMPLES_PER_TENSOR)
        digest.update(f"{key} {tuple(tensor.shape)}".encode())
        digest.update(flat[::stride].to("cpu", torch.float32).numpy().tobytes())
    return digest.hexdigest()


def run_facts(
    config: RunConfig,
    family: str,
    base: str,
    dataset: Dataset,
    class_dataset: Dataset | None = None,
) -> dict[str, Any]:
    """All that decides a run's result, as run.json stores it."""
    return {
        **config.as_dict(),
        "family": family,
        "base_model": base,
        "dataset": _listing(dataset),
        "class_dataset": _listing(class_dataset) if class_dataset else None,
    }


def _listing(dataset: Dataset) -> dict[str, Any]:
    return {
        "name": dataset.name,
        "resolution_px": dataset.resolution_px,
        "fingerprint": dataset.fingerprint(),
        "pictures": [
            {"name": p.name, "caption": p.caption, "bucket_px": p.bucket_px}
            for p in dataset.pictures
        ],
    }


@dataclass(frozen=True)
class RunFolder:
    """Where one run writes."""

    path: Path

    @classmethod
    def create(cls, parent: Path, name: str, facts: Mapping[str, Any]) -> RunFolder:
        """Make the folder and its run.json; a run with the same facts has the same folder.

        Raises:
            SaveError: it cannot be written.
        """
        fingerprint = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        safe = re.sub(r"[^\w.-]+", "_", name).strip("._") or "run"
        folder = cls(parent / f"{facts['method']}-{safe}-{fingerprint[:8]}")
        versions = {package: importlib.metadata.version(package) for package in PACKAGES}
        content = {"fingerprint": fingerprint, **facts, "versions": versions}
        write_whole(folder.path / "run.json", json.dumps(content, indent=2).encode())
        return folder

    def write_result(
        self,
        tensors: Mapping[str, Tensor],
        metadata: Mapping[str, str],
        metrics: Iterable[Any],
    ) -> None:
        """Store what was learned, in the dtypes it has, and the record of every step.

        Raises:
            SaveError: it cannot be written.
        """
        lines = "".join(json.dumps(row) + "\n" for row in metrics)
        write_whole(self.path / "metrics.jsonl", lines.encode())
        save_tensors(self.path / "result.safetensors", tensors, metadata, dtype=None)
