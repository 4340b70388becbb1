"""Compares adapters: a picture for each row and prompt, sampled once and kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfyui_version
import torch
from PIL import Image
from torch import Tensor

from ....trainers.errors import AdapterError, UnsupportedModelError
from ....trainers.models.architectures import Architecture, architecture_of
from ....trainers.runs.pictures.cells import CellFolder, read_cell, write_cell
from ....trainers.runs.pictures.grid import draw_grid
from ....trainers.settings.preview import CompareConfig
from ..memory import check_interrupt
from ..models.stored.identity import clip_fingerprint, model_fingerprint, vae_fingerprint
from ..sampling import PictureProgress, Sampling, conditioning, decoded, picture_of, sample
from ..status import running_node, show_text
from .class_images import Painter
from .overview import image_of
from .rows import Row, adapter_rows, base_row, run_rows

FORMAT = 1  # of cells; a new one makes them anew
# Settings that decide what all cells are; prompts and strengths decide one alone.
DECISIVE = ("negative_prompt", "width", "height", "steps", "cfg", "seed")


@dataclass(frozen=True)
class Cell:
    """One picture, as it was asked for."""

    row: Row
    prompt: str
    file: Path


def compare(
    painter: Painter, config: CompareConfig, adapters: Mapping[str, Any], run: str
) -> tuple[Tensor, Tensor, list[str]]:
    """The sheet (1, h, w, 3), its cells (B, H, W, 3) by rows, in 0..1, and the rows' labels.

    Args:
        adapters: a file's name, a LoRA or a learned token, by the input that it came by.
        run: the folder of a run to compare what it learned; empty for none.

    Raises:
        AdapterError, RunError, UnsupportedModelError: there is nothing to compare, or it does not
            fit.
        SettingsError: too many cells.
        SaveError: the disk is full; the cells made so far stay.
    """
    rows = _rows(painter, config, adapters, run)
    config.check_cells(len(rows))
    cells = _cells(painter, config, rows)
    pictures = {cell.file: read_cell(cell.file) for cell in cells}
    missing = [cell for cell in cells if pictures[cell.file] is None]
    try:
        made = _make(painter, config, missing)
    except BaseException:  # Cancel, which is none of Exception's children
        kept = sum(read_cell(cell.file) is not None for cell in cells)
        _say(f"{kept} of {len(cells)} cells are kept; run again makes the others")
        raise
    pictures |= made
    _say(f"{len(cells)} cells: {len(cells) - len(made)} from disk, {len(made)} made")
    shown = [picture for cell in cells if (picture := pictures[cell.file]) is not None]
    width = len(config.lines)
    grid = [shown[start : start + width] for start in range(0, len(shown), width)]
    sheet = draw_grid(grid, [row.label for row in rows], config.lines)
    return image_of(sheet), _batch(shown), [" ".join(row.label).strip() for row in rows]


def _say(text: str) -> None:
    show_text(text, running_node())


def _rows(
    painter: Painter, config: CompareConfig, adapters: Mapping[str, Any], run: str
) -> list[Row]:
    """What is compared, each seen to fit the base."""
    if not adapters and not run:
        raise AdapterError(
            "No adapter is chosen; allowed: LoRA files, LoRAs and learned tokens of the graph, or "
            "a run.\nChoose a file in lora_1, or wire something into it or into run."
        )
    if painter.clip is None:
        raise UnsupportedModelError(
            "Input 'clip' is empty: the checkpoint holds no text encoder.\n"
            "Wire the clip of a checkpoint that has one, or of Load CLIP."
        )
    base, strengths = (painter.model, painter.clip), config.strength_values
    rows = [base_row()] if config.baseline else []
    for place, item in adapters.items():
        rows += adapter_rows(base, place, item, strengths)
    if run:
        rows += list(run_rows(base, run, strengths, config.most_rows - len(rows)))
    return rows


def _cells(painter: Painter, config: CompareConfig, rows: Sequence[Row]) -> list[Cell]:
    """All cells by rows, and where each is kept."""
    architecture = architecture_of(type(painter.model.model.model_config).__name__)
    key = _key(painter, config)
    parents = {row.parent for row in rows}
    folders = {parent: CellFolder.open(parent, architecture.name, key) for parent in parents}
    clips = _ClipHashes(painter.clip, architecture, config.negative_prompt)
    return [
        Cell(row, prompt, folders[row.parent].file(_own(row, prompt, clips)))
        for row in rows
        for prompt in config.lines
    ]


def _key(painter: Painter, config: CompareConfig) -> dict[str, Any]:
    """All that the cells have in common."""
    return {
        "format": FORMAT,
        "model": model_fingerprint(painter.model),
        "vae": vae_fingerprint(painter.vae),
        **{name: getattr(config, name) for name in DECISIVE},
        "sampler_name": painter.sampler_name,
        "scheduler": painter.scheduler,
        # Samplers change between releases of the host, numbers between those of torch.
        "made_with": {
            "comfyui": comfyui_version.__version__,
            "torch": ".".join(torch.__version__.split(".")[:2]),
        },
    }


def _own(row: Row, prompt: str, clips: _ClipHashes) -> dict[str, Any]:
    """What one cell has for itself."""
    adapter = {"adapter": row.digest, "strength": row.strength}
    return {"prompt": prompt, "clip": clips.of(row, prompt), **adapter}


class _ClipHashes:
    """What the clip makes of a prompt, as a hash: the same for all rows that teach it nothing."""

    def __init__(self, clip: Any, architecture: Architecture, negative_prompt: str) -> None:
        self._clip, self._architecture, self._negative = clip, architecture, negative_prompt
        self._known: dict[tuple[Any, ...], str] = {}

    def of(self, row: Row, prompt: str) -> str:
        place = (*map(id, row.tokens), prompt)
        if place not in self._known:
            prompts = (prompt, self._negative)
            self._known[place] = clip_fingerprint(row.clip(self._clip), self._architecture, prompts)
        return self._known[place]


# -- making them --------------------------------------------------------------


def _make(
    painter: Painter, config: CompareConfig, missing: Sequence[Cell]
) -> dict[Path, Image.Image]:
    """Sample what is missing, row by row, so that weights are patched once for each."""
    if not missing:
        return {}
    different = {cell.file: cell for cell in missing}.values()
    todo: dict[int, list[Cell]] = {}
    for cell in different:
        todo.setdefault(id(cell.row), []).append(cell)
    made: dict[Path, Image.Image] = {}
    progress = PictureProgress(painter.model, len(different), config.steps)
    prompts = _Prompts(painter.clip)
    for cells in todo.values():
        check_interrupt()
        model, clip = cells[0].row.apply(painter.model, painter.clip)
        negative = prompts.encoded(clip, config.negative_prompt)
        told = [(prompts.encoded(clip, cell.prompt), negative) for cell in cells]
        for cell, conditionings in zip(cells, told, strict=True):
            check_interrupt()
            picture = _sampled(painter, config, model, conditionings, progress)
            write_cell(cell.file, picture, _texts(cell, config))
            made[cell.file] = picture
            progress.pictures_done += 1
    return made


def _sampled(
    painter: Painter,
    config: CompareConfig,
    model: Any,
    conditionings: tuple[Any, Any],
    progress: PictureProgress,
) -> Image.Image:
    how = Sampling(config.steps, config.cfg, painter.sampler_name, painter.scheduler)
    stride_px = painter.vae.spacial_compression_encode()
    size = (config.height // stride_px, config.width // stride_px)
    latents = sample(model, how, conditionings, [config.seed], size, progress)
    return picture_of(decoded(painter.vae, latents)[0])


class _Prompts:
    """Prompts as conditionings; those of the base's own clip are encoded once for all rows."""

    def __init__(self, clip: Any) -> None:
        self._base = clip
        self._known: dict[str, Any] = {}

    def encoded(self, clip: Any, prompt: str) -> Any:
        if not self._is_base(clip):
            return conditioning(clip, prompt)
        if prompt not in self._known:
            self._known[prompt] = conditioning(self._base, prompt)
        return self._known[prompt]

    def _is_base(self, clip: Any) -> bool:
        same_tokens = clip.tokenizer is self._base.tokenizer
        return same_tokens and clip.patcher.patches == self._base.patcher.patches


def _texts(cell: Cell, config: CompareConfig) -> dict[str, str]:
    name, detail = cell.row.label
    return {
        "adapter": name,
        "strength": detail,
        "prompt": cell.prompt,
        "negative_prompt": config.negative_prompt,
        "seed": str(config.seed),
    }


def _batch(pictures: Sequence[Image.Image]) -> Tensor:
    """One picture after the other, without a second copy of them all."""
    width, height = pictures[0].size
    batch = torch.empty(len(pictures), height, width, 3)
    for place, picture in zip(batch, pictures, strict=True):
        place.copy_(image_of(picture)[0])
    return batch
