"""Personalize: train LoRA, DreamBooth and Textual Inversion inside a ComfyUI graph."""

from __future__ import annotations

from typing import Any

WEB_DIRECTORY = "./js"

__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]


async def comfy_entrypoint() -> Any:
    # Not before it is asked for: `python -m` imports this file where there is no ComfyUI yet.
    from .nodes import comfy_entrypoint as made

    return await made()
