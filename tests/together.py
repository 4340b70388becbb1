"""Trainings that two processes do together, and one by itself; run as a module it is one of two."""

from __future__ import annotations

import dataclasses
import functools
import io
import itertools
import logging
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import trainers.loop
import trainers.optimizers.processes
from tests import tiny
from trainers.data.examples import Examples
from trainers.data.validation import split
from trainers.errors import ProcessesError
from trainers.loop import Training, make_job, with_teacher
from trainers.optimizers.processes import ALONE, Processes, join
from trainers.optimizers.sharded import Part
from trainers.runs.pictures.class_images import ClassFolder
from trainers.settings.class_images import ClassImagesConfig
from trainers.step import Job

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 300  # on a machine that is busy with other work
STEPS = 6
HALF = 3
PRIOR = {"prior": "class images", "prior_weight": 0.7}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("lora", {"gradient_accumulation": 2, "caption_dropout": 0.3, **PRIOR}),
    "lora with text encoder": (
        "lora",
        {"train_text_encoder": True, "min_snr_gamma": 5.0, "lr_schedule": "cosine", "epochs": 4},
    ),
    "output preservation": ("lora", {"prior": "output preservation", "class_prompt": "a dog"}),
    "dreambooth": (
        "dreambooth",
        {"train_text_encoder": True, "text_encoder_stop_step": 4, "ema_decay": 0.9, **PRIOR},
    ),
    "fused": ("dreambooth", {"fused_backward": True, "train_text_encoder": True}),
    "textual inversion": ("textual_inversion", {"templates": "captions only"}),
    "validation": ("lora", {"held_out": 0.4, "validate_every": 2, "hand_out": "best step"}),
}
Outcome = dict[str, Any]


def pictures(with_classes: bool) -> Examples:
    """Three pictures of one shape, one of them masked, and two of another: some batches are odd."""
    instances = tiny.examples(counts=(3, 2), masked=True)
    spoken = ("a photo of <sks> dog", "a beach", "<sks>", "a dog", "the <sks>")
    if not with_classes:
        return dataclasses.replace(instances, captions=spoken)
    classes = tiny.examples(counts=(2, 2))
    latents = tuple(1.5 * latent for latent in classes.latents)
    captions = ("a dog",) * len(latents)
    return instances.with_class_images(
        dataclasses.replace(classes, latents=latents, captions=captions)
    )


def training(case: str, processes: Processes = ALONE, batch_size: int = 1) -> tuple[Training, Job]:
    """A training of a case, before its first step."""
    method, settings = CASES[case]
    config = tiny.run_config(
        method,
        **{"steps": STEPS, "learning_rate": 0.1, "batch_size": batch_size, "seed": 3} | settings,
    )
    examples, watched = pictures("prior_weight" in settings), None
    if config.validation.held_out:
        examples, watched = split(examples, frozenset({1, 4}))
    base = tiny.parts()
    captions = [*examples.captions, *(watched.captions if watched else ()), "a dog", ""]
    encoded = None if config.own.trains_text else tiny.encode_captions(base, captions)
    job = make_job(base, examples, encoded, config, watched, processes)
    return Training(job), job


def finished(made: Training, job: Job) -> Outcome:
    """What came of it."""
    rows = []
    while not made.has_ended:
        rows.append(made.step().as_row())
    best = made.best and (made.best.step, made.best.loss)
    return {"rows": rows, "learned": learned(job), "best": best, "state": stored(made)}


def learned(job: Job) -> dict[str, Tensor]:
    """Copies of what is handed out."""
    return {name: tensor.clone() for name, tensor in job.trainable.export().items()}


def stored(made: Training) -> bytes:
    """The state, as a file has it."""
    file = io.BytesIO()
    torch.save(made.state(), file)
    return file.getvalue()


def resumed(case: str, state: bytes, processes: Processes = ALONE, batch_size: int = 1) -> Outcome:
    """The rest of a run, from its state."""
    made, job = training(case, processes, batch_size)
    made.load_state(torch.load(io.BytesIO(state), weights_only=True))
    return finished(made, job)


def half(case: str, processes: Processes = ALONE, batch_size: int = 1) -> bytes:
    """The state in the middle of a run."""
    made, _ = training(case, processes, batch_size)
    for _ in range(HALF):
        made.step()
    return stored(made)


def damp() -> None:
    """As the fixture damped_adamw."""
    torch.optim.AdamW = functools.partial(torch.optim.AdamW, eps=0.1)  # type: ignore[misc]


# -- two processes ------------------------------------------------------------


def start(folder: Path, module: str = "tests.together") -> list[subprocess.Popen[str]]:
    """Two processes of a module that train and leave what came of it in `folder`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    facts = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    told = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    return [
        subprocess.Popen(
            [sys.executable, "-m", module, str(folder)],
            env={**os.environ, **facts, **told, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=Path(__file__).parent.parent,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]


def outcomes(
    folder: Path, states: Mapping[str, str], module: str = "tests.together"
) -> list[Outcome]:
    """What each of two processes of a module came to; the second is killed at the end.

    Args:
        states: cases by name, whose state after half of a run by one process they are to find.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim, "AdamW", torch.optim.AdamW)
        damp()
        for name, case in states.items():
            (folder / f"{name}.state").write_bytes(half(case, batch_size=2))
    running = start(folder, module)
    try:
        said = [process.communicate(timeout=PATIENCE_SECONDS)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0, -9], said
    made: list[Outcome] = [torch.load(folder / f"{rank}.pt") for rank in range(2)]
    made[0]["lost"] = torch.load(folder / "lost.pt")
    made[0]["said"], made[1]["said"] = said
    return made


def unlike(processes: Processes) -> str:
    """What is said where one of the two has read another state."""
    made, job = training("lora", processes)
    with torch.no_grad():
        job.trainable.parameters[0][0] += processes.rank
    try:
        made.step()
    except ProcessesError as error:
        return str(error)
    return ""


def lose_one(processes: Processes, folder: Path) -> None:
    """Kill the second of two between two steps; what the first says of it, and after how long."""
    made, _ = training("lora", processes)
    made.step()
    if processes.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    started = time.monotonic()
    try:
        made.step()
    except ProcessesError as error:
        torch.save((str(error), time.monotonic() - started), folder / "lost.pt")


def overflowing(case: str, processes: Processes = ALONE, batch_size: int = 1) -> Outcome:
    """A training in fp16; the gradients of one weight are infinite once, in the last process.

    Its rows have the scale after each step.
    """
    with pytest.MonkeyPatch.context() as patch:  # fp16 itself is not for CPUs
        scaler = trainers.loop.gradient_scaler
        patch.setattr(trainers.loop, "gradient_scaler", lambda _, *of: scaler(torch.float16, *of))
        made, job = training(case, processes, batch_size)
    rows, first = [], made._scaler.get_scale()
    last = processes.rank == processes.count - 1
    infinite(made, lambda: last and made.done == HALF and made._scaler.get_scale() == first)
    while not made.has_ended:
        rows.append({**made.step().as_row(), "scale": made._scaler.get_scale()})
    return {"rows": rows, "learned": learned(job)}


def infinite(made: Training, here: Callable[[], bool]) -> None:
    """Let the gradients of one weight, or of this process's part of it, be infinite `here`."""
    parts = [p for p in made.parameters if isinstance(p, Part)]
    if not parts:
        made.parameters[-1].register_hook(
            lambda gradient: torch.full_like(gradient, math.inf) if here() else gradient
        )
        return
    part = parts[-1]

    def take() -> None:
        Part.take_gradient(part)
        if here():
            part.grad.fill_(math.inf)

    part.take_gradient = take


def taught(processes: Processes = ALONE) -> Outcome:
    """What the base says as a teacher, and how often it was asked here."""
    config = tiny.run_config("lora", prior="teacher", class_prompt="a dog", prior_samples=5)
    base, asked = tiny.parts(), []

    def counting(noisy: Tensor, *others: Any) -> Tensor:
        asked.append(len(noisy))
        return base.predict(noisy, *others)

    counted = dataclasses.replace(base, predict=counting)
    pictures = tiny.examples(counts=(2, 1))
    encoded = tiny.encode_captions(base, [*pictures.captions, "a dog", ""])
    job = with_teacher(make_job(counted, pictures, encoded, config, processes=processes))
    teacher = job.examples.teacher
    return {
        "asked": sum(asked),
        "targets": [one.target for one in teacher.values()],
        "timesteps": [one.timestep for one in teacher.values()],
    }


def painted(folder: Path, processes: Processes = ALONE) -> list[list[int]]:
    """Makes class images, each of a color by its seed; the batches of seeds made here."""
    config = ClassImagesConfig(seed=3, count=10, batch_size=2, width=64, height=64)
    kept = ClassFolder.open(folder, config.prompt, {})
    batches = kept.share(config, processes)
    for seed in itertools.chain(*batches):
        kept.write(seed, Image.new("RGB", (64, 64), (seed, 90, 160)))
    kept.wait(config.seeds, processes)
    assert len(kept.dataset(config)) == config.count
    return batches


def main(folder: Path) -> None:
    """What one of the two does."""
    logging.basicConfig(level=logging.INFO)
    damp()
    trainers.optimizers.processes.FUSED_BUCKET = 2**13  # several, though the models are tiny
    processes = join(cpu=True)
    outcomes: dict[str, Any] = {}
    for case in CASES:
        started = time.monotonic()
        outcomes[case] = finished(*training(case, processes))
        log.info("%s: %.1f s", case, time.monotonic() - started)
    outcomes["half"] = {case: half(case, processes) for case in ("lora", "fused")}
    outcomes["resumed"] = {
        case: resumed(case, (folder / f"{case}.state").read_bytes(), processes)
        for case in ("lora", "fused")
    }
    outcomes["unlike"] = unlike(processes)
    outcomes["overflowing"] = overflowing("lora", processes)
    outcomes["taught"] = taught(processes)
    outcomes["painted"] = painted(folder / "class images", processes)
    try:
        painted(folder / str(processes.rank), processes)
    except ProcessesError as error:
        outcomes["not shared"] = str(error)
    torch.save(outcomes, folder / f"{processes.rank}.pt")
    lose_one(processes, folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
