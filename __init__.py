"""Personalize: train LoRA, DreamBooth and Textual Inversion inside a ComfyUI graph."""

from .nodes import comfy_entrypoint

WEB_DIRECTORY = "./js"

__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
