"""The model card of what is shared: README.md, as the Hub's pages and searches read it.

Words of the user's go into it as code spans, as JSON strings inside code, or through the YAML
writer, so that none of them can be taken for Markdown, HTML or metadata. Paths, names of the
pictures and of their folder are never told.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from huggingface_hub import ModelCardData

from ..models.architectures import ARCHITECTURES
from ..runs.metadata import NEEDS
from ..settings.field import settings_of
from ..settings.run import METHOD_CONFIGS, METHOD_DEFAULTS, config_groups
from .artifact import CHECKPOINT, EMBEDDING, LORA, Artifact

TITLES = {LORA: "LoRA", EMBEDDING: "learned word (Textual Inversion)", CHECKPOINT: "model"}
METHOD_TAGS = {"dreambooth": "dreambooth", "textual_inversion": "textual_inversion"}
FAMILY = {"sd15": "stable-diffusion", "sd2": "stable-diffusion", "sdxl": "stable-diffusion-xl"}
# Settings that everyone asks for; others are told where they are not their default.
ALWAYS = ("steps", "learning_rate", "batch_size", "rank", "alpha", "seed", "vectors", "initializer")
UNTOLD = ("store", "validation")  # groups that change nothing of a result, but for which step it is
PACK = "Personalize for ComfyUI"


@dataclass(frozen=True)
class Base:
    """The base model, as its own card says.

    Attributes:
        license: fields of the card by their names: license, license_name, license_link.
    """

    repo_id: str
    license: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Told:
    """What a card tells beside the file itself.

    Attributes:
        run: what run.json holds; nothing where no run is known.
        license: the user's word for it; empty for the base model's.
        instance_prompt: what calls the subject in a prompt.
        previews: names in the repository and prompts of the pictures.
        captions: whether those of the pictures it was trained on are told.
    """

    repo_id: str
    base: Base | None = None
    run: Mapping[str, Any] = field(default_factory=dict)
    license: str = ""
    instance_prompt: str = ""
    previews: Sequence[tuple[str, str]] = ()
    captions: bool = False

    @property
    def license_fields(self) -> Mapping[str, str]:
        if self.license:
            return {"license": self.license}
        return self.base.license if self.base else {}


def card(artifact: Artifact, told: Told) -> str:
    """The text of README.md."""
    parts = ["---", _metadata(artifact, told), "---", "", *_text(artifact, told), ""]
    return "\n".join(parts)


def prompt_of(run: Mapping[str, Any]) -> str:
    """What calls the subject: the learned word, or the caption that all pictures share."""
    if run.get("method") == "textual_inversion":
        return str(run.get("own", {}).get("token", ""))
    captions = set(captions_of(run))
    return captions.pop() if len(captions) == 1 else ""


def captions_of(run: Mapping[str, Any]) -> list[str]:
    """The captions of the pictures it was trained on, in their order."""
    pictures = (run.get("dataset") or {}).get("pictures", [])
    return [str(picture.get("caption", "")) for picture in pictures]


def _metadata(artifact: Artifact, told: Told) -> str:
    method = METHOD_TAGS.get(str(told.run.get("method")))
    family = FAMILY.get(artifact.architecture)
    tags = ["text-to-image", artifact.kind, method, family, "comfyui", "personalize"]
    if artifact.kind == LORA and artifact.in_diffusers:
        tags.append("template:sd-lora")  # how the Hub's galleries of LoRAs find it
    gallery = [{"text": text, "output": {"url": name}} for name, text in told.previews]
    relation = "finetune" if artifact.kind == CHECKPOINT else "adapter"
    fields: dict[str, Any] = dict(told.license_fields)
    data = ModelCardData(
        base_model=told.base.repo_id if told.base else None,
        base_model_relation=relation if told.base else None,
        library_name="diffusers" if artifact.in_diffusers else None,
        pipeline_tag="text-to-image",
        tags=[tag for tag in tags if tag],
        instance_prompt=told.instance_prompt or None,
        widget=gallery or None,
        **fields,
    )
    yaml: str = data.to_yaml()
    return yaml


def _text(artifact: Artifact, told: Told) -> Iterator[str]:
    yield f"# {told.repo_id.split('/')[-1]}"
    yield ""
    yield f"A {_what(artifact, told)}, trained with {PACK}."
    if told.previews:
        yield from ("", "<Gallery />")
    yield from ("", "## Use", "")
    if told.instance_prompt:
        yield f"Write {code(told.instance_prompt)} in the prompt."
        yield ""
    for needed in _needed(artifact):
        yield f"Its prompts need the learned word {code(needed)} too, which is a file of its own."
        yield ""
    yield f"**ComfyUI**: {_in_comfyui(artifact)}"
    if artifact.in_diffusers:
        yield from ("", "**diffusers**:", "", *_in_diffusers(artifact, told))
    if settings := list(_settings(told.run)):
        yield from ("", "## Training", "", *settings)
    if told.captions and (captions := captions_of(told.run)):
        yield from ("", "## Captions", "", *(f"- {code(caption)}" for caption in captions))
    yield from ("", "## Licence", "", _licence(told))


def _what(artifact: Artifact, told: Told) -> str:
    record = ARCHITECTURES.get(artifact.architecture)
    known = record is not None and record.name != "generic"
    title = f"{record.title} {TITLES[artifact.kind]}" if record and known else TITLES[artifact.kind]
    if told.base:
        return f"{title} made from [{told.base.repo_id}]({_link(told.base.repo_id)})"
    named = artifact.metadata.get("ss_sd_model_name")
    return f"{title} made from the file {code(named)}" if named else title


def _link(repo_id: str) -> str:
    return f"https://huggingface.co/{repo_id}"


def _needed(artifact: Artifact) -> list[str]:
    needs = json.loads(artifact.metadata.get(NEEDS) or "[]")
    return [str(one.get("token")) for one in needs]


def _in_comfyui(artifact: Artifact) -> str:
    file = code(artifact.path.name)
    if artifact.kind == LORA:
        return f"put {file} into `models/loras` and pick it in Load LoRA."
    if artifact.kind == EMBEDDING:
        word = code(f"embedding:{artifact.path.stem}")
        return f"put {file} into `models/embeddings` and write {word} in the prompt."
    return f"put {file} into `models/checkpoints` and pick it in Load Checkpoint."


def _in_diffusers(artifact: Artifact, told: Told) -> Iterator[str]:
    repo, file = json.dumps(told.repo_id), json.dumps(artifact.path.name)
    base = json.dumps(told.base.repo_id if told.base else "the/base-model")
    prompt = json.dumps(told.instance_prompt or "your prompt")
    sdxl = artifact.architecture == "sdxl"
    name, dtype = "DiffusionPipeline", "float16" if artifact.architecture in FAMILY else "bfloat16"
    if artifact.kind == CHECKPOINT:
        name = "StableDiffusionXLPipeline" if sdxl else "StableDiffusionPipeline"
    yield from ("```python", "import torch", f"from diffusers import {name}", "")
    if artifact.kind == CHECKPOINT:
        yield f"url = {json.dumps(f'{_link(told.repo_id)}/blob/main/')} + {file}"
        yield f"pipe = {name}.from_single_file(url, torch_dtype=torch.{dtype})"
    else:
        yield f"pipe = {name}.from_pretrained({base}, torch_dtype=torch.{dtype})"
    if artifact.kind == LORA:
        yield f"pipe.load_lora_weights({repo}, weight_name={file})"
    elif artifact.kind == EMBEDDING:
        token = artifact.metadata.get("personalize.token") or told.instance_prompt
        yield f"pipe.load_textual_inversion({repo}, weight_name={file}, token={json.dumps(token)})"
    yield f'image = pipe.to("cuda")({prompt}).images[0]'
    yield "```"


def _settings(run: Mapping[str, Any]) -> Iterator[str]:
    """How it was trained: what everyone asks, and what is not the default."""
    method = str(run.get("method"))
    if method not in METHOD_CONFIGS:
        return
    yield f"- method: {code(method)}"
    dataset = run.get("dataset") or {}
    yield f"- pictures: {code(len(dataset.get('pictures', [])))}"
    yield f"- resolution: {code(dataset.get('resolution_px'))}"
    for group, config in config_groups(method).items():
        values = run.get(group) or {}
        for name, (one, facts) in settings_of(config).items():
            default = METHOD_DEFAULTS[method].get(name, one.default)
            is_text = isinstance(default, str) and not facts.choices  # such as a class prompt
            if name not in values or group in UNTOLD or (is_text and name not in ALWAYS):
                continue
            if name in ALWAYS or values[name] != default:
                yield f"- {name}: {code(values[name])}"
    versions = run.get("versions") or {}
    if versions:
        listed = ", ".join(f"{package} {version}" for package, version in versions.items())
        yield f"- versions: {code(listed)}"


def _licence(told: Told) -> str:
    fields = told.license_fields
    named, link = (
        fields.get("license_name") or fields.get("license"),
        fields.get("license_link", ""),
    )
    of_base = "The licence of the base model covers what is trained on it"
    if not named:
        return f"{of_base}. Read it before you use or share this."
    at = f" (<{link}>)" if re.fullmatch(r"https://[\w./%#?=&-]+", link) else ""
    return f"{code(named)}{at}" if told.license else f"{of_base}: {code(named)}{at}."


def code(value: Any) -> str:
    """Any value as Markdown shows it letter by letter, in one line."""
    text = " ".join(str(value).split()) or " "
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    blank = " " if text[0] == "`" or text[-1] == "`" else ""
    return f"{fence}{blank}{text}{blank}{fence}"
