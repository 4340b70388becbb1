"""Captions through the host's own CLIP: frozen as it stands, or through a twin that trains.

Captions are taken literally: parentheses are text, not weights. A caption of any length is encoded
whole, in as many windows as the host's own prompts have. Where the text encoder looks at control
images, the host's own node for such prompts puts them into it.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from ....trainers.contracts import Controls, Prompt, Rows, Text
from ....trainers.errors import DatasetError
from ..memory import check_interrupt
from .stored.storage import alias
from .tokenizer import encoder_names, knowing, literal, plain_tokenizer, token_key


class HostText:
    """A trainers.contracts.TextSide over a CLIP whose module is a twin.

    Args:
        twin: of clip.cond_stage_model; the module itself where nothing is asked of it.
        control_encoder: as the model's record says.
    """

    def __init__(
        self, clip: Any, twin: nn.Module, device: torch.device, control_encoder: str = ""
    ) -> None:
        self._control_encoder = control_encoder
        self.encoders = encoder_names(clip)
        self.learned: dict[str, Rows] = {}
        self._clip, self._twin, self._device = clip, twin, device
        self._speaker: tuple[tuple[int, ...], Any] | None = None

    def tokenize(self, text: str) -> dict[str, list[int | Tensor]]:
        windows = tokens_of(self._speaking(), text)
        return {
            name: [
                token if isinstance(token, Tensor) else int(token)
                for window in windows[token_key(name)]
                for token, *_ in window
            ]
            for name in self.encoders
        }

    def encode(self, prompt: Prompt) -> Text:
        return _encoded(self._speaking(), prompt, self._control_encoder)

    def vocabulary(self, encoder: str) -> Tensor:
        table: Tensor = getattr(self._twin, encoder).transformer.get_input_embeddings().weight
        return table.detach()

    def _speaking(self) -> Any:
        """The clip around the twin; its tokenizer answers for what is learned by now."""
        known = tuple(id(row) for rows in self.learned.values() for row in rows.values())
        if self._speaker is None or self._speaker[0] != known:
            speaker = copy.copy(self._clip)
            speaker.cond_stage_model = self._twin
            # In place of the patcher and of the host's loading: the twin is where it has to be.
            speaker.patcher = SimpleNamespace(load_device=self._device, forced_hooks=None)
            speaker.load_model = lambda tokens=None: speaker.patcher
            speaker.tokenizer = knowing(self._clip.tokenizer, self.learned, weights=False)
            self._speaker = known, speaker
        return self._speaker[1]


def encode_captions(
    clip: Any,
    prompts: Iterable[Prompt],
    report: Callable[[int, int], None] = lambda done, total: check_interrupt(),
    control_encoder: str = "",
) -> dict[Prompt, Text]:
    """What each different caption becomes, by the host's CLIP as it stands, on the CPU.

    Args:
        control_encoder: as the model's record says.
        report: called before each with how many are done, of how many; may raise.
    """
    encoded: dict[Prompt, Text] = {}
    reader = literal(clip)
    different = list(dict.fromkeys(prompts))
    for done, prompt in enumerate(different):
        report(done, len(different))
        with torch.inference_mode():
            made = _encoded(reader, prompt, control_encoder)
        encoded[prompt] = {name: alias(t).cpu().clone() for name, t in made.items()}
    return encoded


def _encoded(clip: Any, prompt: Prompt, control_encoder: str) -> dict[str, Tensor]:
    """What a caption becomes, by a CLIP that takes texts literally."""
    if isinstance(prompt, str):
        return as_text(clip.encode_from_tokens(tokens_of(clip, prompt), return_dict=True))
    _refuse_files(clip, prompt[0])
    (cond, others), *_ = conditioning_with(clip, prompt, control_encoder)
    return as_text({"cond": cond, **others})


def conditioning_with(clip: Any, prompt: tuple[str, Controls], control_encoder: str) -> Any:
    """The CONDITIONING of a caption with control images, by the host's own node for such."""
    caption, controls = prompt
    images = {f"image{place}": image for place, image in enumerate(controls.pixels(), start=1)}
    return host_node(control_encoder).execute(clip, caption, **images).args[0]


def host_node(node_id: str) -> Any:
    """The class of one of the host's nodes; None where this host has none of that name."""
    return importlib.import_module("nodes").NODE_CLASS_MAPPINGS.get(node_id)


def as_text(made: dict[str, Any]) -> dict[str, Tensor]:
    """What the host's CLIP gives, under the names that its conditioning takes."""
    renamed = {"cross_attn": made["cond"], **made}
    del renamed["cond"]
    return {name: value for name, value in renamed.items() if isinstance(value, Tensor)}


def conditioning_of(text: Text) -> Any:
    """A Text as a CONDITIONING."""
    others = {name: value for name, value in text.items() if name != "cross_attn"}
    return [[text["cross_attn"], others]]


def tokens_of(clip: Any, caption: str) -> Any:
    """The tokens of a caption, by a CLIP that takes texts literally.

    Raises:
        DatasetError: it names an embedding's file, which would be trained on without being told.
    """
    _refuse_files(clip, caption)
    return clip.tokenize(caption)


def _refuse_files(clip: Any, caption: str) -> None:
    if "embedding:" in caption:
        plain = plain_tokenizer(clip.tokenizer).tokenize_with_weights(caption)
        found = (token for windows in plain.values() for window in windows for token, *_ in window)
        if any(isinstance(token, Tensor) for token in found):
            raise DatasetError(
                f"The caption '{caption}' names an embedding's file, which training does not read."
                "\nWrite the words themselves, or wire in a clip that knows the token (Train "
                "Textual Inversion, Apply Embedding) and write the token."
            )
