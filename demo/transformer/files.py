"""Three files that a host's own loaders make a Stable Diffusion 3 of, and the nodes that do."""

from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.graphs import Graph, Link
from tests.host import Host

from .. import text
from ..autoencoder import SD15_SCALE
from ..checkpoint import BASE_FILES
from .network import COPIES, TEXT_WIDTH

TRANSFORMER = "personalize_demo_sd3.safetensors"
TEXT_ENCODER = "personalize_demo_clip_l.safetensors"
AUTOENCODER = "personalize_demo_vae.safetensors"
KINDS = {TRANSFORMER: "diffusion_models", TEXT_ENCODER: "text_encoders", AUTOENCODER: "vae"}
SD3_SCALE, SD3_SHIFT = 1.5305, 0.0609  # of latents, before the transformer sees them
FULL_WIDTHS = {  # of texts, and of pooled texts: CLIP-L and CLIP-G beside each other
    "context_embedder.weight": 4096,
    "time_text_embed.text_embedder.linear_1.weight": 2048,
}


def transformer_weights(model: nn.Module) -> dict[str, Tensor]:
    """A transformer's weights, fp16, under diffusers' names, which the host knows."""
    made = {}
    for name, weight in model.state_dict().items():
        if name in FULL_WIDTHS:
            assert weight.shape[1] == TEXT_WIDTH, (name, weight.shape)
            weight = nn.functional.pad(weight, (0, FULL_WIDTHS[name] - TEXT_WIDTH))
        made[name] = weight.detach().cpu().half().contiguous()
    return made


def autoencoder_weights(narrow: dict[str, Tensor]) -> dict[str, Tensor]:
    """The demo base's autoencoder with each latent channel four times over.

    The decoder takes the mean of the copies. SD3 scales latents otherwise than SD 1.5 does.
    """
    into, out = "taesd_encoder.14", "taesd_decoder.1.weight"
    ratio = SD3_SCALE / SD15_SCALE
    return narrow | {
        f"{into}.weight": narrow[f"{into}.weight"].repeat(COPIES, 1, 1, 1),
        f"{into}.bias": narrow[f"{into}.bias"].repeat(COPIES),
        out: narrow[out].repeat(1, COPIES, 1, 1) / COPIES,
        "vae_scale": narrow["vae_scale"].float() * ratio,
        "vae_shift": narrow["vae_shift"].float() / ratio + SD3_SHIFT,
    }


def compose(folder: Path, model: nn.Module | None = None) -> dict[str, Path]:
    """Write the files, or those that are missing, of a transformer if one is given.

    Returns:
        Paths by the names under which KINDS has them. The text encoder is 250 MB.
    """
    folder.mkdir(parents=True, exist_ok=True)
    makers: dict[str, Callable[[], dict[str, Tensor]]] = {
        TEXT_ENCODER: text.weights,
        AUTOENCODER: lambda: autoencoder_weights(load_file(BASE_FILES / "vae.safetensors")),
    }
    if model is not None:
        made = transformer_weights(model)
        (folder / TRANSFORMER).unlink(missing_ok=True)
        makers[TRANSFORMER] = lambda: made
    for name, make in makers.items():
        if not (folder / name).exists():
            save_file({k: v.clone() for k, v in make().items()}, folder / name)
    return {name: folder / name for name in KINDS}


def offer(host: Host, paths: Mapping[str, Path]) -> None:
    """Let a host find the files, before or after its start."""
    for name, path in paths.items():
        host.add_model(KINDS[name], path, name)


def load(graph: Graph) -> list[Link]:
    """Add the host's loaders: MODEL, CLIP and VAE."""
    return [
        graph.add("UNETLoader", unet_name=TRANSFORMER, weight_dtype="default")[0],
        graph.add("CLIPLoader", clip_name=TEXT_ENCODER, type="sd3")[0],
        graph.add("VAELoader", vae_name=AUTOENCODER)[0],
    ]
