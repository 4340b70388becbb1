"""Training scripts of others, as contenders: diffusers' examples and kohya's.

They run as they come but for rank, steps, size and precision, with the picture as often as there
are steps. diffusers' encode picture and caption in each step; kohya's LoRA trains more layers than
attention's.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from benchmarks.bare_loop import UNETS
from benchmarks.gpu_cases import DIFFUSERS, DREAMBOOTH, INVERSION, KOHYA, LORA, Case
from tests.checkpoints import CLIP_L, KL_VAE
from tests.host import ROOT, HostError

PROMPT = "a photo of sks dog"
SCRIPTS = {
    (DIFFUSERS, LORA): "examples/dreambooth/train_dreambooth_lora.py",
    (DIFFUSERS, DREAMBOOTH): "examples/dreambooth/train_dreambooth.py",
    (DIFFUSERS, INVERSION): "examples/textual_inversion/textual_inversion.py",
    (KOHYA, LORA): "train_network.py",
}
LONGEST_SECONDS = 3600
SD1_WORDS = Path("comfy", "sd1_tokenizer")  # it says 8192, which scripts would pad captions to


def watched(
    case: Case, checkout: Path, model: Path, picture: Path, comfyui: Path, on_cpu: bool, **how: Any
) -> dict[str, Any]:
    """What benchmarks.watched tells of a script; what that does after its steps may fail.

    Args:
        model, comfyui, how: as `command_of` has them.

    Raises:
        HostError: it made fewer steps than it was to.
    """
    with tempfile.TemporaryDirectory() as scratch:
        out, written = Path(scratch) / "out", Path(scratch) / "found.json"
        pictures = copies_of(picture, Path(scratch) / "pictures", how["steps"])
        command = [python_of(checkout), str(ROOT / "benchmarks" / "watched.py"), str(written)]
        command += command_of(case, checkout, model, pictures, out, comfyui, **how)
        done = ended(command, checkout, ACCELERATE_USE_CPU=str(on_cpu))
        found: dict[str, Any] = json.loads(written.read_text()) if written.exists() else {}
    if len(found.get("seconds", ())) < how["steps"] - 1:
        raise failed(done)
    return found


def command_of(
    case: Case, checkout: Path, model: Path, pictures: Path, out: Path, comfyui: Path, **how: Any
) -> list[str]:
    """A script and its arguments.

    Args:
        model: a folder as diffusers writes them, or for kohya's a checkpoint.
        pictures: a folder with a folder of pictures in it.
        out: where it may write.
        how: steps, size_px and rank.
    """
    common = {
        "pretrained_model_name_or_path": model,
        "output_dir": out,
        "resolution": how["size_px"],
        "train_batch_size": 1,
        "max_train_steps": how["steps"],
        "learning_rate": 1e-4,
        "mixed_precision": "no" if case.precision == "fp32" else case.precision,
        "seed": 0,
    }
    flags: list[str] = []
    (folder,) = pictures.iterdir()
    if case.kind == DIFFUSERS:
        common |= {"lr_warmup_steps": 0, "checkpointing_steps": 10**6}
        if case.method == INVERSION:
            common |= {"train_data_dir": folder, "placeholder_token": "<sks>", "repeats": 1}
            common |= {"initializer_token": "dog", "num_vectors": 3, "save_steps": 10**6}
        else:
            common |= {"instance_data_dir": folder, "instance_prompt": PROMPT}
        if case.method == LORA:
            common |= {"rank": how["rank"]}
    else:
        common |= {"train_data_dir": pictures, "network_module": "networks.lora"}
        common |= {"network_dim": how["rank"], "network_alpha": how["rank"]}
        common |= {"optimizer_type": "AdamW", "max_data_loader_n_workers": 0}
        common |= {"tokenizer_cache_dir": kohya_words(out.with_name("words"), comfyui)}
        flags = ["--network_train_unet_only", "--cache_latents", "--sdpa"]
    values = [text for name, value in common.items() for text in (f"--{name}", str(value))]
    return [str(checkout / SCRIPTS[case.kind, case.method]), *values, *flags]


def kohya_words(folder: Path, comfyui: Path) -> Path:
    """A folder with SD1.5's tokenizer where kohya's looks before it asks the network."""
    words = folder / "openai_clip-vit-large-patch14"
    shutil.copytree(comfyui / SD1_WORDS, words)
    told = words / "tokenizer_config.json"
    told.write_text(json.dumps(json.loads(told.read_text()) | {"model_max_length": 77}))
    return folder


def python_of(checkout: Path) -> str:
    """That of the checkout's own environment, if it has one."""
    own = [checkout / name / "bin/python" for name in ("venv", ".venv")]
    return next((str(path) for path in own if path.exists()), sys.executable)


def copies_of(picture: Path, folder: Path, count: int) -> Path:
    """A folder with a folder of that many copies, named as kohya's wants it: repeats and words."""
    inner = folder / "1_sks dog"
    if not inner.exists():
        inner.mkdir(parents=True)
        for number in range(count):
            shutil.copyfile(picture, inner / f"{number}.png")
    return folder


def diffusers_model(name: str, folder: Path, comfyui: Path) -> Path:
    """An SD1.5 with random weights as diffusers writes them, written if it is not there."""
    path = folder / f"{name}-diffusers"
    if not path.exists():
        pipeline = StableDiffusionPipeline(
            vae=AutoencoderKL(**KL_VAE),
            text_encoder=CLIPTextModel(CLIPTextConfig(**CLIP_L)),
            tokenizer=CLIPTokenizer.from_pretrained(comfyui / SD1_WORDS, model_max_length=77),
            unet=UNet2DConditionModel(**UNETS[name]),
            scheduler=DDPMScheduler(
                beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
            ),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        partial = path.with_suffix(".partial")
        pipeline.save_pretrained(partial)
        partial.replace(path)
    return path


def ended(
    command: Sequence[str], folder: Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    """A process that came to its end, whichever."""
    try:
        return subprocess.run(
            command, cwd=folder, env=os.environ | environment, text=True, capture_output=True,
            timeout=LONGEST_SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise HostError(f"it took more than {LONGEST_SECONDS} s", kind="timeout") from None


def failed(done: subprocess.CompletedProcess[str]) -> HostError:
    told = done.stderr.strip() or f"it ended with {done.returncode} and said nothing"
    return HostError(told.splitlines()[-1], kind="process", details={"traceback": [told]})
