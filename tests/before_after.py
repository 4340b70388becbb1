"""The main job on real input: the shipped graph, in a real ComfyUI, on a folder of pictures.

Run by ``python dev.py demo``, which sets everything up first.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, ImageDraw

from demo.checkpoint import DEMO_CHECKPOINT, compose
from demo.panel import SAMPLING
from demo.recipes import IDENTIFIER, LORA
from demo.world import SIZE_PX, write_subject
from tests.events import Event
from tests.host import ROOT, Host, HostError, Prompt, convert, nodes_of
from trainers.data.listing import has_pictures
from trainers.errors import DatasetError

WORKFLOW = min((ROOT / "workflows").glob("*.json"))
SUBJECT = "star"
NUM_SEEDS = 3
TILE_PX = 256
LONGEST_SECONDS = 24 * 3600.0
QUIET_SECONDS = 5  # between status lines where they cannot replace each other


class Base(NamedTuple):
    """A checkpoint, its title, the picture size that suits it, and settings that do."""

    path: Path
    title: str
    resolution: int
    training: dict[str, Any] = {}
    sampling: dict[str, Any] = {}


class Task(NamedTuple):
    """What to train on, and for how long if not as the graph says."""

    images: Path
    prompt: str
    steps: int | None


class StatusLine:
    """Lines that replace each other in a terminal, and come seldom in a log."""

    def __init__(self, prompt: Prompt) -> None:
        self._samplers = {i for i, n in prompt.items() if n["class_type"] == "KSampler"}
        self._live = sys.stdout.isatty()
        self._shown_at = 0.0
        self._latest = ""

    def show(self, event: Event) -> None:
        text = self._text(event)
        if not text:
            return
        self._latest = text
        if self._live:
            print(f"\r\x1b[K  {text:.76}", end="", flush=True)
        elif time.monotonic() - self._shown_at >= QUIET_SECONDS:
            self._print()

    def end(self) -> None:
        """Leaves the last line standing."""
        if self._live and self._latest:
            print()
        elif self._latest:
            self._print()

    def _text(self, event: Event) -> str:
        if event.kind in ("progress_text", "personalize.status"):
            return str(event.data["text"]).strip().split("\n")[0]
        if event.kind == "progress" and event.data["node"] in self._samplers:
            return f"sampling {event.data['value']}/{event.data['max']}"
        return ""

    def _print(self) -> None:
        print(f"  {self._latest}", flush=True)
        self._latest, self._shown_at = "", time.monotonic()


def choose_base(own: Path | None, work: Path, resolution: int) -> Base:
    """The user's checkpoint, else the demo base."""
    if own is not None:
        return Base(own, own.name, resolution)
    path = compose(work / "checkpoints" / DEMO_CHECKPOINT)
    title = "a small model of a little drawn world (--base FILE: a real one)"
    return Base(path, title, SIZE_PX, LORA, SAMPLING)


def choose_task(asked: argparse.Namespace, base: Base, demo_folder: Path) -> Task:
    """The user's pictures, else drawn ones; a folder's name says what its pictures show.

    Raises:
        DatasetError: The folder has no pictures.
    """
    if asked.images is None:
        folder = demo_folder / "examples" / SUBJECT
        write_subject(SUBJECT, folder, f"{IDENTIFIER} {SUBJECT}", factor=base.resolution // SIZE_PX)
    else:
        folder = asked.images
        if not has_pictures(folder):
            raise DatasetError(f"--images {folder}: no pictures in it.\nPut 3 to 30 of them there.")
    prompt = asked.prompt or f"a photo of a sks {folder.resolve().name.replace('_', ' ')}"
    return Task(folder, prompt, asked.steps)


def training_prompt(host: Host, base: Base, task: Task) -> Prompt:
    """The shipped graph with this task's folder, words, sizes and steps in it."""
    prompt = convert(json.loads(WORKFLOW.read_text(encoding="utf-8")), host.object_info())
    (loader,) = nodes_of(prompt, "CheckpointLoaderSimple")
    loader["ckpt_name"] = base.path.name
    (dataset,) = nodes_of(prompt, "PersonalizeFolderDataset")
    name = task.images.resolve().name
    dataset |= {"folder": name, "resolution": base.resolution}
    (subject,) = nodes_of(prompt, "PrimitiveString")
    subject["value"] = task.prompt
    (painted,) = nodes_of(prompt, "StringConcatenate")
    painted["string_b"] = ""
    (preview,) = nodes_of(prompt, "PersonalizePreview")
    preview |= {"width": base.resolution, "height": base.resolution}
    (train,) = nodes_of(prompt, "PersonalizeTrainLora")
    train |= base.training
    train["steps"] = task.steps or train["steps"]
    (latent,) = nodes_of(prompt, "EmptyLatentImage")
    latent |= {"width": base.resolution, "height": base.resolution, "batch_size": NUM_SEEDS}
    (sampler,) = nodes_of(prompt, "KSampler")
    sampler |= base.sampling
    (save_lora,) = nodes_of(prompt, "PersonalizeSaveLora")
    save_lora["filename_prefix"] = f"loras/{name}"
    (save_image,) = nodes_of(prompt, "SaveImage")
    save_image["filename_prefix"] = name
    (trainer,) = (i for i, node in prompt.items() if node["class_type"] == "PersonalizeTrainLora")
    losses = {"loss_map": [trainer, 3], "theme": "auto"}
    prompt["plot"] = {"class_type": "PersonalizeLossPlot", "inputs": losses}
    return prompt


def base_prompt(prompt: Prompt) -> Prompt:
    """The same pictures from the base: wires to the training's results go to its sources."""
    prompt = copy.deepcopy(prompt)
    (trainer,) = (i for i, node in prompt.items() if node["class_type"] == "PersonalizeTrainLora")
    sources = prompt[trainer]["inputs"]
    for node in prompt.values():
        for name, value in node["inputs"].items():
            if value in ([trainer, 0], [trainer, 1]):
                node["inputs"][name] = sources[("model", "clip")[value[1]]]
    (target,) = (i for i, node in prompt.items() if node["class_type"] == "SaveImage")
    return {i: prompt[i] for i in _sources_of(prompt, target)}


def _sources_of(prompt: Prompt, target: str) -> set[str]:
    wired = [v[0] for v in prompt[target]["inputs"].values() if isinstance(v, list)]
    return {target}.union(*(_sources_of(prompt, source) for source in wired))


def side_by_side(left: Sequence[Path], right: Sequence[Path], path: Path) -> None:
    """Writes a sheet: a row for each seed, the base's picture left, the trained one's right."""
    sheet = Image.new("RGB", (2 * TILE_PX + 4, 20 + len(left) * (TILE_PX + 4)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, (title, files) in enumerate((("base", left), ("trained", right))):
        x = column * (TILE_PX + 4)
        draw.text((x + 4, 4), title, fill="black")
        for row, file in enumerate(files):
            tile = Image.open(file).convert("RGB").resize((TILE_PX, TILE_PX))
            sheet.paste(tile, (x, 20 + row * (TILE_PX + 4)))
    sheet.save(path)


def saved_pictures(host: Host, entry: dict[str, Any], prompt: Prompt, node: str) -> list[Path]:
    """The picture files of one class of node."""
    outputs = {i: entry["outputs"].get(i, {}) for i, n in prompt.items() if n["class_type"] == node}
    return host.images({"outputs": outputs})


def followed(host: Host, prompt: Prompt) -> dict[str, Any]:
    """Runs a prompt and shows what its nodes say meanwhile."""
    status = StatusLine(prompt)
    try:
        return host.follow(prompt, status.show, timeout=LONGEST_SECONDS)
    finally:
        status.end()


def compare(host: Host, prompt: Prompt, folder: Path) -> dict[str, Path]:
    """Samples, trains and samples again; returns what was made by what it is."""
    print("Sampling the base model ...", flush=True)
    before_prompt = base_prompt(prompt)
    before = saved_pictures(host, followed(host, before_prompt), before_prompt, "SaveImage")
    print("Training a LoRA, then sampling with it ...", flush=True)
    entry = followed(host, prompt)
    after = saved_pictures(host, entry, prompt, "SaveImage")
    side_by_side(before, after, folder / "before_after.png")
    (plot,) = saved_pictures(host, entry, prompt, "PersonalizeLossPlot")
    shutil.copyfile(plot, folder / "loss.png")
    texts = [shown["text"] for shown in entry["outputs"].values() if "text" in shown]
    (lora,) = (Path(t) for text in texts for t in text if t.endswith(".safetensors"))
    return {
        "LoRA": lora,
        "Loss plot": folder / "loss.png",
        "Before and after": folder / "before_after.png",
    }


def run(asked: argparse.Namespace) -> dict[str, Path]:
    """Does the whole job; returns what was made by what it is."""
    print("Preparing the base model and the pictures ...", flush=True)
    folder = asked.work / "demo"
    folder.mkdir(parents=True, exist_ok=True)
    accelerated = has_gpu()
    base = choose_base(asked.base, asked.work, 512 if accelerated else 256)
    task = choose_task(asked, base, folder)
    print(f"  Base model  {base.title}\n  Pictures    {task.images}\n  Prompt      {task.prompt}")
    print(f"Starting ComfyUI on the {'GPU' if accelerated else 'CPU'} ...", flush=True)
    host = Host(
        asked.comfyui,
        base=folder,
        checkpoints={base.path.name: base.path},
        args=() if accelerated else ("--cpu",),
    )
    host.add_input(task.images, task.images.resolve().name)
    with host:
        return compare(host, training_prompt(host, base, task), folder)


def has_gpu() -> bool:
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it speaks up on a mere import
    import torch

    return torch.cuda.is_available() or torch.backends.mps.is_available()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--comfyui", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--prompt")
    parser.add_argument("--base", type=Path)
    parser.add_argument("--steps", type=int)
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the host is stopped then, too
    try:
        made = run(asked)
    except HostError as error:
        log = asked.work / "demo" / "host.log"
        print(f"\n{error.summary}\nComfyUI's log: {log}", file=sys.stderr)
        return 1
    except DatasetError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped, and ComfyUI with it.", file=sys.stderr)
        return 130
    print("Done.")
    for what, path in made.items():
        print(f"  {what:16}  {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
