"""What a sampler gives to the host's module, and what comes of it."""

from __future__ import annotations

import inspect
import pathlib
from typing import Any

import folder_paths
import safetensors.torch
import torch
from comfy_api.latest import io

from . import host_prediction, noisy_latents, probe, shown


class Called(io.ComfyNode):
    """Writes what the denoiser is called with for a conditioning, and its output, to output/.

    The file `name`.safetensors has the tensors by the names of `forward`'s arguments, and those of
    the conditioning by its own, with its hidden states as "hidden".
    """

    @classmethod
    def define_schema(cls) -> io.Schema:
        return probe(
            "ProbeCalled",
            io.Model.Input("model"),
            io.Conditioning.Input("conditioning"),
            io.String.Input("name"),
        )

    @classmethod
    def execute(cls, model: Any, conditioning: Any, name: str) -> io.NodeOutput:
        denoiser = model.model.diffusion_model
        called = inspect.signature(denoiser.forward)
        ((hidden, facts),) = conditioning
        kept = {k: t for k, t in {**facts, "hidden": hidden}.items() if torch.is_tensor(t)}

        def keep(_: Any, given: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
            arguments = called.bind(*given, **named).arguments
            arguments |= arguments.pop("kwargs", {})
            tensors = {**arguments, "output": output}
            kept.update({k: t for k, t in tensors.items() if torch.is_tensor(t)})

        handle = denoiser.register_forward_hook(keep, with_kwargs=True)
        try:
            host_prediction(model, noisy_latents(model), 500, conditioning)
        finally:
            handle.remove()
        path = pathlib.Path(folder_paths.get_output_directory()) / f"{name}.safetensors"
        safetensors.torch.save_file(
            {k: t.cpu().clone().contiguous() for k, t in kept.items()}, path
        )
        return shown({k: list(t.shape) for k, t in kept.items()})
