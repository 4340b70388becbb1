"""A node pack for tests alone: it measures inside the host what no socket shows.

Every probe is an output node; what it found comes back as JSON in the prompt's history.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import pathlib
import sys
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import comfy.model_management
import comfy.model_sampling
import comfy.sampler_helpers
import comfy.samplers
import folder_paths
import safetensors.torch
import torch
from aiohttp import web
from comfy_api.latest import ComfyExtension, io
from server import PromptServer

from .filling import fill


def pack(module: str) -> ModuleType:
    """A module of the pack under test, by its path inside the pack."""
    name = next(n for n in sys.modules if n.endswith("custom_nodes/personalize"))
    return importlib.import_module(f"{name}.{module}")


def shown(found: dict[str, Any]) -> io.NodeOutput:
    return io.NodeOutput(ui={"found": [json.dumps(found)]})


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Largest difference over the largest value."""
    ours, theirs = ours.float().cpu(), theirs.float().cpu()
    return float((ours - theirs).abs().max() / theirs.abs().max())


def probe(node_id: str, *inputs: io.Input) -> io.Schema:
    return io.Schema(
        node_id=node_id, category="tests", is_output_node=True, inputs=list(inputs), outputs=[],
        not_idempotent=True,
    )  # fmt: skip


@contextlib.contextmanager
def parts_of(model: Any, clip: Any, dtype: torch.dtype = torch.float32, quantized: str = "none"):
    """The trainer's twins of both sockets, with gradients off.

    Args:
        quantized: what the denoiser's large layers are to be held in.
    """
    models = "nodes.host.models"
    architecture = pack(f"{models}.support").check_model(model)
    placement = pack(f"{models}.twin").Placement
    pack("nodes.host.memory").make_room()
    device = comfy.model_management.get_torch_device()
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        pack(f"{models}.training_mode").training_mode(),
    ):
        yield pack(f"{models}.parts").parts_of(
            model,
            clip,
            architecture,
            placement(device, dtype, quantized=quantized),
            placement(device, torch.float32),
        )


LARGE = ("PixArt",)  # it divides by how often 64 goes into the side
SIZE = (640, 480, 12, 34, 64, 64)  # of a picture whose latents are 8 x 8


def size_of_picture() -> Any:
    return pack("trainers.contracts").Size(*SIZE)


def noisy_latents(model: Any) -> torch.Tensor:
    latents = model.model.latent_format
    pixels = getattr(latents, "spacial_downscale_ratio", 8) == 1
    side = 64 if pixels or type(model.model).__name__ in LARGE else 8
    shape = (1, latents.latent_channels, *[1] * (latents.latent_dimensions - 2), side, side)
    noisy = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return noisy.to(comfy.model_management.get_torch_device())


def host_prediction(
    model: Any, noisy: torch.Tensor, timestep: int, conditioning: Any
) -> torch.Tensor:
    """What the host's module gives at a thousandth: its sampler's calculation run backwards."""
    comfy.model_management.load_models_gpu([model])
    sampling = model.get_model_object("model_sampling")
    facts = pack("nodes.host.models.denoiser").size_facts(size_of_picture())
    guidance = pack("nodes.host.models.support").check_model(model).guidance
    if guidance is not None:
        facts["guidance"] = guidance
    told = [[conditioning[0][0], {**conditioning[0][1], **facts}]]
    conds = {"positive": comfy.sampler_helpers.convert_cond(told)}
    before = model.model.model_sampling
    with torch.inference_mode():
        sigma, x, back = sampled_at(sampling, noisy, timestep)
        model.model.model_sampling = sampling
        model.pre_run()
        try:
            comfy.samplers.process_conds(model.model, x, conds, x.device)
            options = {"transformer_options": {}}
            (denoised,) = comfy.samplers.calc_cond_batch(
                model.model, [conds["positive"]], x, sigma, options
            )
        finally:
            model.cleanup()
            model.model.model_sampling = before
    return back(denoised)


def sampled_at(
    sampling: Any, noisy: torch.Tensor, timestep: int
) -> tuple[torch.Tensor, torch.Tensor, Callable[[torch.Tensor], torch.Tensor]]:
    """The sampler's noise level and input where the module gets `noisy`; and denoised -> output."""
    if isinstance(sampling, comfy.model_sampling.CONST):
        sigma = torch.full((1,), (timestep + 0.5) / 1000, device=noisy.device)
        return sigma, noisy, lambda denoised: (noisy - denoised) / sigma
    if isinstance(sampling, comfy.model_sampling.COSMOS_RFLOW):
        share = torch.full((1,), (timestep + 0.5) / 1000, device=noisy.device)
        # It scales its input by 1 - share, and gives that less share times the output.
        return share / (1 - share), noisy / (1 - share), lambda d: (noisy - d) / share
    sigma = sampling.sigmas[timestep][None].to(noisy.device)
    x = noisy * (sigma**2 + 1).sqrt()  # the host scales its input by 1 / sqrt(sigma^2 + 1)
    if isinstance(sampling, comfy.model_sampling.V_PREDICTION):
        return sigma, x, lambda d: (x / (sigma**2 + 1) - d) * (sigma**2 + 1).sqrt() / sigma
    return sigma, x, lambda denoised: (x - denoised) / sigma


def _least(model: Any) -> int:
    """The least noise to compare at: a flow's output is a difference divided by its share."""
    flows = (comfy.model_sampling.CONST, comfy.model_sampling.COSMOS_RFLOW)
    return 100 if isinstance(model.get_model_object("model_sampling"), flows) else 10


def predicted(parts: Any, noisy: torch.Tensor, timestep: int, text: Any) -> torch.Tensor:
    levels = torch.full((1,), (timestep + 0.5) / 1000, device=noisy.device)
    return parts.predict(noisy, parts.objective.timesteps(levels), [text], [size_of_picture()])


def batched(parts: Any, noisy: torch.Tensor, texts: list[Any]) -> float:
    """How far the predictions of a batch are from those of its samples one by one."""
    mixed = torch.cat([noisy.roll(place, -1) for place in range(len(texts))])
    levels = torch.linspace(0.3, 0.8, len(texts), device=noisy.device)
    timesteps = parts.objective.timesteps(levels)
    size = size_of_picture()
    together = parts.predict(mixed, timesteps, texts, [size] * len(texts))
    apart = [
        parts.predict(mixed[[place]], timesteps[[place]], [text], [size])
        for place, text in enumerate(texts)
    ]
    return relative(together, torch.cat(apart))


def compared(text: Any, conditioning: Any) -> float:
    """The largest difference of the trainer's text and the host's, pooled output included."""
    theirs, facts = conditioning[0]
    pooled = facts.get("pooled_output")
    found = [relative(text["cross_attn"], theirs)]
    if pooled is not None:
        found.append(relative(text["pooled_output"], pooled))
    return max(found)


REFERENCES = "reference_latents"
CONTROL_IMAGE = (
    io.Image.Input("image", optional=True),
    io.Vae.Input("vae", optional=True),
)


def controls_of(image: Any, vae: Any) -> Any:
    """A control image as the trainer keeps it; None for none."""
    if image is None:
        return None
    latents = pack("nodes.host.models.vae").encoder_of(vae)(image)
    return pack("trainers.contracts").Controls((latents,), lambda: (image.clone(),))


def told(parts: Any, text: str, controls: Any) -> Any:
    """What the trainer tells the denoiser of a sample."""
    prompt = pack("trainers.contracts").prompt_of(text, controls, parts.architecture)
    made = parts.text.encode(prompt)
    return made if controls is None else {**made, REFERENCES: controls.latents}


class Prediction(io.ComfyNode):
    """The trainer's prediction and text encoding against the host's, for the same sockets."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return probe(
            "ProbePrediction",
            io.Model.Input("model"),
            io.Clip.Input("clip"),
            io.Conditioning.Input("conditioning"),
            io.String.Input("text"),
            *CONTROL_IMAGE,
        )

    @classmethod
    def execute(
        cls, model: Any, clip: Any, conditioning: Any, text: str, image: Any = None, vae: Any = None
    ) -> io.NodeOutput:
        controls = controls_of(image, vae)
        noisy = noisy_latents(model)
        theirs = {
            t: host_prediction(model, noisy, t, conditioning) for t in (_least(model), 500, 990)
        }
        with parts_of(model, clip) as parts:
            encoded = told(parts, text, controls)
            ours = {t: predicted(parts, noisy, t, encoded) for t in theirs}
            prompt = pack("trainers.contracts").prompt_of(text, controls, parts.architecture)
            frozen = pack("nodes.host.models.text").encode_captions(
                clip, [prompt], control_encoder=parts.architecture.control_encoder
            )[prompt]
            others = [told(parts, f"{text} {text}, {text}", controls)]
            if controls is not None:  # a batch with one, one of another shape, and none
                (latents,) = controls.latents
                of_others = ((latents.flip(-1),), (latents[..., :-2],), (latents, latents))
                others += [{**encoded, REFERENCES: given} for given in of_others]
                others += [parts.text.encode(text)]
            batch = batched(parts, noisy, [encoded, *others])
        return shown({
            "batch": batch,
            "text": compared(encoded, conditioning),
            "frozen text": compared(frozen, conditioning),
            "prediction": max(relative(ours[t], theirs[t]) for t in theirs),
            "objective": parts.objective.prediction,
            "architecture": parts.architecture.name,
        })  # fmt: skip


class Trained(io.ComfyNode):
    """The trainer's own modules with a LoRA's numbers in them, against the host with that LoRA."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return probe(
            "ProbeTrained",
            io.Model.Input("model"),
            io.Clip.Input("clip"),
            io.LoraModel.Input("lora"),
            io.String.Input("settings"),
            io.String.Input("text"),
            io.Model.Input("trained_model"),
            io.Conditioning.Input("conditioning"),
        )

    @classmethod
    def execute(
        cls, model: Any, clip: Any, lora: Any, settings: str, text: str, trained_model: Any,
        conditioning: Any,
    ) -> io.NodeOutput:  # fmt: skip
        noisy = noisy_latents(model)
        theirs = host_prediction(trained_model, noisy, 500, conditioning)
        values = {"rank": 4, "alpha": 4.0, **json.loads(settings)}
        config = pack("trainers.settings.run").run_config("lora", values)
        with parts_of(model, clip) as parts:
            pack("trainers.methods").METHODS["lora"](parts, config)
            named = pack("trainers.methods.lora").layer_name
            filled = sum(fill(parts, name, lora, named) for name in parts.modules)
            encoded = parts.text.encode(text)
            ours = predicted(parts, noisy, 500, encoded)
        return shown({
            "text": compared(encoded, conditioning),
            "prediction": relative(ours, theirs),
            "unused keys": sum(key.endswith(".alpha") for key in lora) - filled,
        })  # fmt: skip


class Kept(io.ComfyNode):
    """Writes what the host's module gives for a conditioning to output/kept.safetensors."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return probe("ProbeKept", io.Model.Input("model"), io.Conditioning.Input("conditioning"))

    @classmethod
    def execute(cls, model: Any, conditioning: Any) -> io.NodeOutput:
        noisy = noisy_latents(model)
        kept = {
            "noisy": noisy,
            "prediction": host_prediction(model, noisy, 500, conditioning),
            "hidden": conditioning[0][0],
            "pooled": conditioning[0][1]["pooled_output"],
        }
        path = pathlib.Path(folder_paths.get_output_directory()) / "kept.safetensors"
        safetensors.torch.save_file({k: t.cpu().contiguous() for k, t in kept.items()}, path)
        return shown({"size": SIZE})


class Same(io.ComfyNode):
    """The largest difference of two conditionings, pooled output included."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return probe("ProbeSame", io.Conditioning.Input("first"), io.Conditioning.Input("second"))

    @classmethod
    def execute(cls, first: Any, second: Any) -> io.NodeOutput:
        (ours, our_facts), (theirs, their_facts) = first[0], second[0]
        pooled = "pooled_output"
        return shown({
            "shape": [list(ours.shape), list(theirs.shape)],
            "equal": bool(
                torch.equal(ours, theirs) and torch.equal(our_facts[pooled], their_facts[pooled])
            ),
            "difference": relative(ours, theirs) if ours.shape == theirs.shape else None,
        })  # fmt: skip


_step_ends: list[float] = []


def watch_steps() -> None:
    """From here on the end of every step of a training is noted.

    A page is told of a step at most every 0.4 s. A step asks the device for its gradients' length
    last of all, so when it returns, what it launched has been computed.
    """
    training = pack("trainers.loop").Training
    step = training.step
    if hasattr(step, "__wrapped__"):
        return

    @functools.wraps(step)
    def timed(self: Any) -> Any:
        progress = step(self)
        _step_ends.append(time.perf_counter())
        return progress

    training.step = timed


@PromptServer.instance.routes.get("/probes/steps")
async def steps(request: web.Request) -> web.Response:
    """When each step since the last question ended, in seconds, and the most memory since then.

    Bytes of a GPU: `peak` in tensors, `reserved` with what torch's allocator has beside them, and
    `held` in tensors now.
    """
    watch_steps()
    found: dict[str, Any] = {"held": 0, "peak": 0, "reserved": 0, "ends": list(_step_ends)}
    _step_ends.clear()
    if (place := comfy.model_management.get_torch_device()).type == "cuda":
        found["held"] = torch.cuda.memory_allocated(place)
        found["peak"] = torch.cuda.max_memory_allocated(place)
        found["reserved"] = torch.cuda.max_memory_reserved(place)
        torch.cuda.reset_peak_memory_stats(place)
    return web.json_response(found)


class Probes(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        from .calls import Called
        from .faults import Disk, Free, Previewed
        from .gradients import Gradients, Step
        from .judges import Judges
        from .loading import Losses, Outputs
        from .odd_models import OfClass
        from .plans import Plans
        from .quantizing import NoKitchen, Patched, Quantized
        from .routing import Routed
        from .saving import Tamper
        from .scanning import Kind, Learned, Loaded
        from .stacks import Lora, Stack
        from .talking import Talker
        from .tiny_models import Tiny
        from .weights import Alive, GivenUp, Room, Saved, Sharing, Streamed

        return [
            *(Prediction, Trained, Gradients, Step, OfClass, Kept, Called),
            *(Sharing, Streamed, Room, GivenUp, Same, Previewed, Disk, Free, Lora, Stack, Tamper),
            *(Tiny, Kind, Learned, Loaded, Saved, Plans, Quantized, Patched, Routed, Alive),
            *(Losses, Outputs, NoKitchen, Judges, Talker),
        ]


async def comfy_entrypoint() -> Probes:
    from .garbage import set_aside_what_is_imported

    set_aside_what_is_imported()
    return Probes()
