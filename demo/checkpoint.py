"""Puts the demo base together: one file that CheckpointLoaderSimple loads as SD 1.5."""

from pathlib import Path

from safetensors.torch import load_file, save_file

from . import text

BASE_FILES = Path(__file__).parent / "base"
DEMO_CHECKPOINT = "personalize_demo.safetensors"  # what hosts offer it as


def compose(path: Path, base: Path = BASE_FILES) -> Path:
    """Write the full checkpoint (UNet, VAE and the seeded text encoder, fp16, 300 MB).

    Args:
        path: the file to write, for example `models/checkpoints/` with DEMO_CHECKPOINT.
        base: the folder with `unet.safetensors` and `vae.safetensors`.
    """
    parts = {
        "model.diffusion_model.": load_file(base / "unet.safetensors"),
        "first_stage_model.": load_file(base / "vae.safetensors"),
        "cond_stage_model.transformer.": text.weights(),
    }
    whole = {prefix + name: t for prefix, part in parts.items() for name, t in part.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")  # a host may stand on the file of before
    save_file(whole, part, metadata={"title": "Personalize demo base"})
    part.replace(path)
    return path
