"""How a folder or a batch of pictures becomes a dataset.

Imports no torch: nodes build their widgets from these fields, scripts read them, and run.json
stores them. Sources: D = diffusers' training scripts, K = kohya sd-scripts,
O = OneTrainer, P = the method's paper.
"""

from __future__ import annotations

from dataclasses import dataclass

from .field import Settings, setting

STEP_PX = 64  # sides of training sizes: UNets halve 1/8-size latents three times
CAPTION_SOURCES = (
    "auto", "txt", "caption", "metadata.jsonl", "file name", "prompt",
)  # fmt: skip
MASK_SOURCES = ("none", "auto", "alpha", "file")


@dataclass(frozen=True)
class DatasetConfig(Settings):
    """How a folder or a batch of pictures becomes a dataset."""

    prompt: str = setting(
        "a photo of sks",
        "The caption of every picture that has none of its own: what the subject is, with a rare "
        "word for its name, as in 'a photo of sks dog'.",
        advanced=False,
    )
    resolution: int = setting(
        512,
        "Training size in pixels: pictures keep their shape, with about this much squared of area. "
        "512 for Stable Diffusion 1.5, 768 for 2, 1024 for SDXL. Smaller is faster and needs less "
        "memory.",
        min=64, max=2048, step=64, advanced=False,
        source="what each was trained at",
    )  # fmt: skip
    captions: str = setting(
        "auto",
        "Where captions come from. auto takes the first of: metadata.jsonl, .txt, .caption files; "
        "else the prompt. The node says what it found.",
        choices=CAPTION_SOURCES,
    )
    masks: str = setting(
        "none",
        "What limits the loss to a part of each picture: nothing, the picture's alpha channel, or "
        "a file beside it (name.mask.png or name-masklabel.png; white is trained). auto takes a "
        "mask file if there is one, else the alpha channel if there is one.",
        choices=MASK_SOURCES,
    )
    buckets: bool = setting(
        True,
        "Group pictures by shape (sides are multiples of 64, area at most the resolution squared) "
        "so that little is cut off. Off: every picture is cut to a square.",
    )
    max_aspect_ratio: float = setting(
        4.0,
        "The longest side over the shortest that a picture may have with buckets on.",
        min=1.0, max=16.0, step=0.1,
    )  # fmt: skip
    upscale: bool = setting(
        False,
        "Enlarge pictures that are smaller than the resolution. Off: they train at their own "
        "size, which keeps them sharp.",
        source="K bucket_no_upscale",
    )


@dataclass(frozen=True)
class CaptioningConfig(Settings):
    """What a model is to say of a folder's pictures, and what becomes of it."""

    instruction: str = setting(
        "",
        "What the model is asked. Empty: one or two sentences of description. Florence-2: one of "
        "<CAPTION>, <DETAILED_CAPTION> (when empty), <MORE_DETAILED_CAPTION>. BLIP: words that "
        "the caption begins with. A tagger reads none.",
        advanced=False,
    )
    prefix: str = setting(
        "",
        "The trigger word, put before each new caption that does not begin with it, with a comma "
        "between: sks dog.",
        advanced=False,
    )
    max_length: int = setting(
        128, "Tokens of a caption at most; about three quarters as many words.",
        min=1, max=4096, advanced=False,
    )  # fmt: skip
    write: bool = setting(
        False,
        "Write each caption into the .txt file beside its picture. Off: they are shown and handed "
        "out, and no file changes.",
        advanced=False,
    )
    overwrite: bool = setting(
        False,
        "Caption pictures too that have a caption of their own; with write on the new one replaces "
        "the .txt file. Off: such pictures keep theirs.",
        advanced=False,
    )
    threshold: float = setting(
        0.35, "Taggers: how likely a tag must be.", min=0.0, max=1.0, step=0.05,
        source="K tag_images_by_wd14_tagger",
    )  # fmt: skip
    character_threshold: float = setting(
        0.85, "Taggers: how likely a tag must be that names a character.",
        min=0.0, max=1.0, step=0.05, source="SmilingWolf's demo of wd-tagger",
    )  # fmt: skip
    exclude_tags: str = setting(
        "", "Taggers: tags to leave out, with commas between; what the trigger word stands for."
    )
