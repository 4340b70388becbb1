"""What surrounds a training in the host: autograd on, memory made free, everything let go after."""

from __future__ import annotations

import ctypes
import gc
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import comfy.model_management
import torch

from ...trainers.models.streaming import settle
from ...trainers.optimizers.processes import Processes
from .models.training_mode import training_mode

LESS_MEMORY = (
    "Lower resolution or batch_size, turn on gradient_checkpointing, or choose optimizer "
    "'adamw_8bit'; for DreamBooth, turn on fused_backward and choose weights 'bf16'."
)


def device() -> torch.device:
    """Where the host runs models."""
    found: torch.device = comfy.model_management.get_torch_device()
    return found


def fp64_device() -> torch.device:
    """Where the host runs models if that knows fp64, and else the CPU."""
    found = device()
    return found if found.type == "cuda" else torch.device("cpu")


def make_room() -> None:
    """Ask every loaded model to leave its device; their weights are then as they were loaded.

    Beside a GPU the host runs some models on the CPU, with patches worked into their weights.
    """
    # One that was given up but not collected would leave the host's list while it walks through it
    # ("list index out of range").
    gc.collect()
    # As the host moves weights itself: quantized ones that were moved in another mode cannot be
    # moved in this one ("Cannot set version_counter for inference tensor").
    with torch.inference_mode():
        comfy.model_management.unload_all_models()  # of the GPUs
        for device in {loaded.device for loaded in comfy.model_management.current_loaded_models}:
            comfy.model_management.free_memory(1e30, device)
    comfy.model_management.soft_empty_cache()


Interrupt: type[BaseException] = comfy.model_management.InterruptProcessingException


def check_interrupt() -> None:
    """Raise the host's interrupt if the user pressed Cancel."""
    comfy.model_management.throw_exception_if_processing_interrupted()


@contextmanager
def cancel_together(processes: Processes) -> Iterator[None]:
    """Cancel inside is raised at its end, and in all processes, whichever of them heard of it.

    One that ended by itself would leave the others in the middle of a step.

    Raises:
        ProcessesError: another process ended.
    """
    asked = False
    try:
        yield
    except Interrupt:
        asked = True
    # Asked once: what comes later is for the next time, in all of them.
    if processes.any(asked or comfy.model_management.processing_interrupted()):
        comfy.model_management.interrupt_current_processing(False)
        raise Interrupt


@contextmanager
def training_session() -> Iterator[None]:
    """Autograd works inside. After it, also after an error or Cancel, nothing is held any more.

    Raises:
        torch.cuda.OutOfMemoryError: with the settings that help, instead of torch's own text; still
            an out-of-memory error, so that the host unloads its models.
    """
    make_room()
    try:
        with torch.inference_mode(False), torch.enable_grad(), training_mode():
            yield
    except torch.cuda.OutOfMemoryError as error:
        _let_go(error)
        raise torch.cuda.OutOfMemoryError(
            f"Training needs more memory than this device has.\n{LESS_MEMORY}"
        ) from None
    except BaseException as error:  # the host's interrupt is none of Exception's children
        _let_go(error)
        raise
    finally:
        settle()
        gc.collect()
        comfy.model_management.soft_empty_cache()
        _return_freed_memory()


def _return_freed_memory() -> None:
    # What was pinned stays so until torch is asked, for which it has no public name.
    if torch.cuda.is_available() and hasattr(torch._C, "_host_emptyCache"):
        torch._C._host_emptyCache()
    # glibc keeps freed blocks for the process; after a training that can be gigabytes of RAM.
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


def _let_go(error: BaseException) -> None:
    # The traceback's frames hold the modules, the optimizer and every tensor of the step.
    traceback.clear_frames(error.__traceback__)
