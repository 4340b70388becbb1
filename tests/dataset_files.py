"""Small real pictures, and datasets made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from trainers.data.dataset import Dataset, batch_dataset, folder_dataset
from trainers.errors import DatasetError
from trainers.settings.dataset import DatasetConfig

RED, WHITE = (255, 0, 0), (255, 255, 255)


def save(path: Path, size: tuple[int, int] = (128, 128), colour: Any = RED, **extra: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    mode = "RGBA" if len(colour) == 4 else "RGB"
    Image.new(mode, size, colour).save(path, **extra)
    return path


def noise(width: int, height: int) -> Image.Image:
    values = np.random.default_rng(width * height).integers(0, 256, (height, width, 3))
    return Image.fromarray(values.astype(np.uint8))


def dataset_of(folder: Path, **settings: Any) -> Dataset:
    return folder_dataset(folder, DatasetConfig(**{"resolution": 128} | settings))


def refusal(folder: Path, **settings: Any) -> str:
    with pytest.raises(DatasetError) as error:
        dataset_of(folder, **settings)
    return str(error.value)


def centre(pixels: torch.Tensor) -> list[int]:
    """The middle pixel in 0..255."""
    height, width, _ = pixels.shape
    return (pixels[height // 2, width // 2] * 255).round().int().tolist()


def half_white(size: tuple[int, int] = (128, 128)) -> Image.Image:
    """A mask whose left half is trained."""
    mask = Image.new("L", size, 0)
    mask.paste(255, (0, 0, size[0] // 2, size[1]))
    return mask


def batch(count: int = 2, **given: Any) -> Dataset:
    images = torch.rand(count, 128, 192, 3, generator=torch.Generator().manual_seed(0))
    arguments: dict[str, Any] = {"images": list(images), "captions": None, "masks": None} | given
    return batch_dataset(config=DatasetConfig(resolution=192), **arguments)
