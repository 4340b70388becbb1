"""The table of base models and the table of methods, for tests in a real ComfyUI.

A new model is a new row.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from PIL import Image

from tests import tiny_transformers as transformers
from tests.conftest import model_file
from tests.dataset_files import noise
from tests.graphs import Graph, Link
from tests.host import Host
from tests.scanned.recipes import CLIP_H, CLIP_LG
from tests.test_host_lora import PROMPT, pictures


@dataclass(frozen=True)
class Row:
    """A base model.

    Attributes:
        name: in the tests' names.
        architecture: which record of trainers.models.architectures it has.
        checkpoint: a file with all of it.
        unet: the file of its denoiser, where that has none or a file of its own.
        recipe: of small text encoders and a VAE, in place of a file, and, without `unet`, of a
            small denoiser as well; see tests.tiny_transformers.
        methods: names in METHODS, in the newest host.
        old_methods: those in the oldest host.
        sampling: settings of the stock node that changes what it predicts.
        objective: what it predicts then.
        encoder: the host's node that shows control images to the text encoder; empty where it does
            not look at them. None: the model is not tried with any.
        unused: adapters' tensors that no gradient reaches: those of a text encoder's last layer,
            where the model takes what the last but one gives, and of what a last block makes of
            the text, which nobody reads.
    """

    name: str
    architecture: str
    checkpoint: str
    methods: Sequence[str]
    old_methods: Sequence[str]
    unet: str = ""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    sampling: Mapping[str, Any] = field(default_factory=dict)
    objective: str = "epsilon"
    encoder: str | None = None
    unused: int = 8

    def __str__(self) -> str:
        return self.name

    def load(self, host: Host, graph: Graph) -> list[Link]:
        """MODEL, CLIP and VAE."""
        if self.recipe:
            model, clip, vae = graph.made(self.recipe)
        else:
            checkpoint = f"{self.checkpoint}_fp16.safetensors"
            host.add_model("checkpoints", model_file(self.checkpoint, "fp16"), checkpoint)
            model, clip, vae = graph.load(checkpoint)
        if self.unet:
            model = load_unet(host, graph, model_file(self.unet, "fp16"), self.unet)
        return [self.sampled(graph, model), clip, vae]

    def pictures(self, host: Host) -> str:
        """A folder to train on."""
        return pictures(host) if self.encoder is None else pairs(host)

    def shown(self, host: Host, graph: Graph, base: list[Link]) -> dict[str, Link]:
        """What a probe is given of a control image: nothing where there is none."""
        if self.encoder is None:
            return {}
        image = graph.add("LoadImage", 2, image=f"{pairs(host)}/0.control.png")[0]
        return {"image": image, "vae": base[2]}

    def encode(self, host: Host, graph: Graph, base: list[Link], clip: Link, text: str) -> Link:
        """The conditioning of a prompt, with a control image where there is one."""
        shown = self.shown(host, graph, base)
        if not shown:
            return graph.encode(clip, text)
        said = graph.encode(clip, text)
        if self.encoder:
            said = graph.add(self.encoder, clip=clip, prompt=text, image1=shown["image"])[0]
        latent = graph.add("VAEEncode", pixels=shown["image"], vae=shown["vae"])[0]
        return graph.add("ReferenceLatent", conditioning=said, latent=latent)[0]

    def sampled(self, graph: Graph, model: Link) -> Link:
        """`model` behind the node that changes what it predicts, if there is one."""
        if not self.sampling:
            return model
        return graph.add("ModelSamplingDiscrete", model=model, **self.sampling)[0]


def pairs(host: Host) -> str:
    """A folder of pictures with control images, which have a shape of their own."""
    folder = host.base / "input" / "pairs"
    if not folder.exists():
        folder.mkdir()
        for number, colour in enumerate(("red", "teal", "gold")):
            Image.new("RGB", (80, 72), colour).save(folder / f"{number}.png")
            noise(96, 64).save(folder / f"{number}.control.png")
    return folder.name


def load_unet(host: Host, graph: Graph, path: Path, name: str) -> Link:
    file = host.add_model("diffusion_models", path, f"{name}.safetensors")
    return graph.add("UNETLoader", unet_name=file, weight_dtype="default")[0]


def newest(host: Host, folder: str, name: str) -> Path:
    """The newest file that a Save node wrote under a name."""
    return max((host.base / "output" / folder).glob(f"{name}_0*"), key=lambda p: p.name)


# -- the methods --------------------------------------------------------------------------


class Trained(NamedTuple):
    """What to sample after a training, or with its file."""

    model: Link
    clip: Link
    prompt: str = PROMPT


class Method(Protocol):
    """A way to train."""

    def train(self, graph: Graph, base: list[Link], dataset: Link, name: str) -> Trained:
        """Train on `base` and save under `name`."""

    def load(self, host: Host, graph: Graph, row: Row, base: list[Link], name: str) -> Trained:
        """The saved file with `base`."""


class Lora(NamedTuple):
    """Train LoRA, Save LoRA and the host's LoraLoader.

    Where text encoders are trained too, a probe compares what was trained with what samples.
    """

    settings: Mapping[str, Any]

    def train(self, graph: Graph, base: list[Link], dataset: Link, name: str) -> Trained:
        settings = {"steps": 1, "learning_rate": 1e-2, **self.settings}
        model, clip, lora, *_ = graph.train(*base, dataset, **settings)
        graph.add(
            "PersonalizeSaveLora", lora=lora, filename_prefix=f"loras/{name}", format="kohya fp32"
        )
        if "train_text_encoder" not in settings:
            return Trained(model, base[1])
        graph.add(
            "ProbeTrained", model=base[0], clip=base[1], lora=lora, text=PROMPT,
            settings=json.dumps(TEXT), trained_model=model, conditioning=graph.encode(clip, PROMPT),
        )  # fmt: skip
        return Trained(model, clip)

    def load(self, host: Host, graph: Graph, row: Row, base: list[Link], name: str) -> Trained:
        model, clip = graph.add(
            "LoraLoader", 2, model=base[0], clip=base[1], strength_model=1.0, strength_clip=1.0,
            lora_name=newest(host, "loras", name).name,
        )  # fmt: skip
        return Trained(model, clip if "train_text_encoder" in self.settings else base[1])


class DreamBooth(NamedTuple):
    """Train DreamBooth; a file of the denoiser alone, or of all where all is trained."""

    settings: Mapping[str, Any]
    rate: float = 1e-4

    @property
    def of_text(self) -> bool:
        return "train_text_encoder" in self.settings

    def train(self, graph: Graph, base: list[Link], dataset: Link, name: str) -> Trained:
        settings = {"steps": 1, "learning_rate": self.rate, **self.settings}
        model, clip, *_ = graph.dreambooth(*base, dataset, **settings)
        prefix = f"saved/{name}"
        if not self.of_text:
            graph.add("ModelSave", model=model, filename_prefix=prefix)
            return Trained(model, base[1])
        graph.add("CheckpointSave", model=model, clip=clip, vae=base[2], filename_prefix=prefix)
        return Trained(model, clip)

    def load(self, host: Host, graph: Graph, row: Row, base: list[Link], name: str) -> Trained:
        saved = newest(host, "saved", name)
        offered = f"{host.base.name}-{row}-{saved.stem}"
        if row.recipe and not row.unet:
            model, clip, _ = graph.made(row.recipe, file=f"saved/{saved.name}")
            return Trained(model, clip if self.of_text else base[1])
        if not self.of_text:
            return Trained(row.sampled(graph, load_unet(host, graph, saved, offered)), base[1])
        file = host.add_model("checkpoints", saved, f"{offered}.safetensors")
        model, clip, _ = graph.load(file)
        return Trained(row.sampled(graph, model), clip)


class Inversion(NamedTuple):
    """Train Textual Inversion, Save Embedding and the file's name in a prompt."""

    def train(self, graph: Graph, base: list[Link], dataset: Link, name: str) -> Trained:
        clip, embedding, *_ = graph.invert(*base, dataset, steps=1, vectors=2, learning_rate=1.0)
        graph.add(
            "PersonalizeSaveEmbedding", embedding=embedding, filename_prefix=f"embeddings/{name}"
        )
        return Trained(base[0], clip, "a photo of <sks>")

    def load(self, host: Host, graph: Graph, row: Row, base: list[Link], name: str) -> Trained:
        saved = newest(host, "embeddings", name).stem
        return Trained(base[0], base[1], f"a photo of embedding:{saved}")


# In the least memory: with all text encoders, fp32 weights and AdamW would take gigabytes.
SMALL = {"weights": "bf16", "fused_backward": True, "optimizer": "adafactor"}
TEXT = {"train_text_encoder": True, "text_encoder_learning_rate": 1e-2}
METHODS: dict[str, Method] = {
    "lora": Lora({"targets": "all with convolutions"}),
    "dora": Lora({"variant": "dora", "targets": "attention and feed-forward"}),
    "lokr": Lora({"variant": "lokr", "targets": "all with convolutions"}),
    # A product of four starts slowly.
    "loha": Lora({"variant": "loha", "targets": "all with convolutions", "learning_rate": 3e-2}),
    "oft": Lora({"variant": "oft", "targets": "all with convolutions"}),
    "pissa": Lora({"initialization": "pissa", "targets": "attention and feed-forward"}),
    "textlora": Lora(TEXT),
    "dreambooth": DreamBooth({}),
    "fastdreambooth": DreamBooth({}, 1e-3),  # where a step of the usual rate is hardly seen
    "smalldreambooth": DreamBooth(SMALL, 1e-3),
    "textdreambooth": DreamBooth({**TEXT, **SMALL, "text_encoder_learning_rate": 1e-4}),
    "inversion": Inversion(),
}

# -- the base models ----------------------------------------------------------------------

V = {"sampling": "v_prediction", "zsnr": False}
ZSNR = {**V, "zsnr": True}
OF_TRANSFORMERS = ("fastdreambooth", "smalldreambooth")  # the others' text encoders cover it
ALL = tuple(name for name in METHODS if name not in OF_TRANSFORMERS)
DENOISER = ("lora", "dora", "dreambooth")
# The oldest host is spared what is slow: DreamBooth with text encoders.
MOST = (*DENOISER, "textlora", "inversion")
VARIANTS = ("lokr", "loha", "oft", "pissa")
SD15 = Row("sd15", "sd15", "thin_sd15", ALL, (*MOST, *VARIANTS), unused=0)
# A prompt takes CLIP-H a second and CLIP-G two. So a few layers of them stand beside the denoiser's
# file, but where what a whole file holds is what matters; SDXL's is in the tests of diffusers and
# of the shipped graphs, and in test_dreambooth_of_sdxl_trains_its_text_encoders.
OF_SD2 = {"model": "SD20", **CLIP_H, "vae": "taesd"}
OF_SDXL = {"model": "SDXL", **CLIP_LG, "vae": "taesd"}
ALL_BESIDE = tuple(name for name in ALL if name != "textdreambooth")
SD2_FILE = Row("sd2-file", "sd2", "thin_sd2", ("textdreambooth",), ("lora",))
SD2 = Row("sd2", "sd2", "", ALL_BESIDE, MOST, "thin_sd2", OF_SD2)
SD2_V = dataclasses.replace(
    SD2, name="sd2-v", methods=MOST, old_methods=("lora",), sampling=V, objective="v"
)
SD2_ZSNR = dataclasses.replace(SD2_V, name="sd2-zsnr", methods=DENOISER, sampling=ZSNR)
SDXL = Row("sdxl", "sdxl", "", (*MOST, "lokr", "oft"), ("textlora", "lokr"), "thin_sdxl", OF_SDXL)
# SDXL's relatives have its text encoders, so they add denoisers; KOALA, which no record knows, also
# has names of its own in files.
SSD1B = Row("ssd1b", "sdxl", "", ("lora", "dreambooth"), ("lora",), "thin_ssd1b", OF_SDXL)
WITH_TEXT = (*DENOISER, "textlora")
DOTTED = (*WITH_TEXT, *VARIANTS)  # as a model without a record is spelled
KOALA = Row("koala", "generic", "", DOTTED, ("lora", *VARIANTS), "thin_koala", OF_SDXL)
# Small transformers, which take seconds. The oldest host lacks the newest. It has its own list of
# the names that layers have in LoRAs; what DreamBooth makes, it handles alike for all of them.
PLAIN = ("lora", "dreambooth")
OLD_TRANSFORMER = ("lora",)
SLOW = (*PLAIN, "textlora", "inversion")
TRANSFORMER = (*SLOW, "smalldreambooth")
FAST = ("lora", "fastdreambooth")


def transformer(
    name: str,
    architecture: str,
    recipe: Mapping[str, Any],
    unused: int = 0,
    old_methods: Sequence[str] = OLD_TRANSFORMER,
    methods: Sequence[str] = TRANSFORMER,
) -> Row:
    return Row(
        name, architecture, "", methods, old_methods, recipe=recipe, objective="flow",
        unused=unused,
    )  # fmt: skip


TRANSFORMERS = [
    transformer(
        "flux",
        "flux",
        transformers.FLUX,
        methods=(*TRANSFORMER, "textdreambooth"),
        old_methods=PLAIN,
    ),
    transformer("klein", "flux2", transformers.KLEIN, unused=8),
    transformer("chroma", "chroma", transformers.CHROMA),
    transformer(
        "z-image",
        "z_image",
        transformers.Z_IMAGE,
        unused=8,
        methods=(*TRANSFORMER, "textdreambooth", "dora", *VARIANTS),
        old_methods=(*PLAIN, "dora", *VARIANTS),
    ),
    # The host's tokenizer of Qwen-Image takes no learned tokens.
    transformer(
        "qwen-image",
        "qwen_image",
        transformers.QWEN_IMAGE,
        unused=4,
        methods=(*SLOW[:-1], "smalldreambooth"),
        old_methods=PLAIN,
    ),
    transformer("krea2", "krea2", transformers.KREA2, unused=8, old_methods=()),
    # The host's `embedding:name` ends in an error where T5 only gives ids.
    transformer("anima", "anima", transformers.ANIMA, methods=SLOW[:-1]),
    transformer("sd3", "sd3", transformers.SD3, methods=SLOW),
    transformer("auraflow", "generic", transformers.AURA_FLOW, methods=FAST),
    *(
        transformer(name, "generic", recipe, unused, methods=PLAIN)
        for name, recipe, unused in (
            ("longcat", transformers.LONGCAT, 0),
            ("cosmos", transformers.COSMOS, 0),
            ("omnigen2", transformers.OMNIGEN2, 8),
            ("kandinsky5", transformers.KANDINSKY5, 0),
        )
    ),
    transformer("ltx", "generic", transformers.LTX, methods=FAST),
    transformer("joyimage", "generic", transformers.JOY_IMAGE, 2, methods=FAST, old_methods=()),
    # The host keeps what it made of a prompt over what weights become: a DreamBooth's result shows
    # all of itself where the base has not sampled.
    transformer(
        "hidream-o1", "generic", transformers.HIDREAM_O1, 4, methods=("lora",), old_methods=()
    ),
]
# Edit models, with control images: the same modules, told of more. The oldest host tells the
# modules in the same way, so two of them are enough there.
EDITS = [
    dataclasses.replace(
        transformer(name, architecture, recipe, unused, old_methods, ("lora",)), encoder=encoder
    )
    for name, architecture, recipe, unused, old_methods, encoder in (
        ("kontext", "flux", transformers.FLUX, 0, ("lora",), ""),
        ("klein-edit", "flux2", transformers.KLEIN, 8, (), ""),
        (
            "qwen-image-edit", "qwen_image", transformers.QWEN_IMAGE_EDIT, 4, ("lora",),
            "TextEncodeQwenImageEditPlus",
        ),
        ("omnigen2-edit", "generic", transformers.OMNIGEN2, 0, (), ""),
    )
]  # fmt: skip
ROWS = [SD15, SD2, SD2_V, SD2_ZSNR, SDXL, SSD1B, KOALA, *TRANSFORMERS]
