"""Textual Inversion: a few rows of the text encoder's table are learned, and nothing else.

    R = argmin over R of E || eps - model(x_t, t, encode("a photo of <token>"; R)) ||^2

(arXiv 2208.01618.) The rows are parameters of their own, which stand in the token list in the place
of ids; the vocabulary and the denoiser are frozen, and gradients pass through to the rows.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable

import torch
from torch import Tensor

from ..contracts import Parts, TextSide, Trainable
from ..data.tokens import has_token, put_in
from ..errors import DatasetError, SettingsError
from ..objective.noise import generator_for
from ..settings.methods.textual_inversion import TextualInversionConfig
from ..settings.run import RunConfig
from .results import spelled
from .templates import TEMPLATES

log = logging.getLogger(__name__)

JITTER = 0.1  # of a copied row, in standard deviations of the table: enough to part company
SHOWN = 5  # captions that an error quotes


def prepare(parts: Parts, config: RunConfig) -> Trainable:
    """Add the token to every text encoder of `parts`; its rows are all that trains.

    Raises:
        SettingsError: no text encoder knows a word of the initializer.
    """
    own: TextualInversionConfig = config.own
    text, seed = parts.text, config.training.seed
    _warn_of_meaning(text, own.token)
    starts = {name: _start(text, name, own, seed) for name in text.encoders}
    rows = parts.add_token(own.token, starts)
    median = {name: _median_norm(text.vocabulary(name)) for name in rows}

    def control_norm() -> None:
        with torch.no_grad():
            for name, row in rows.items():
                row.mul_(median[name].to(row) / row.norm(dim=1, keepdim=True))

    def export(copy: bool = False) -> dict[str, Tensor]:  # always copies
        return spelled({name: row.detach().to("cpu", copy=True) for name, row in rows.items()})

    def prompts(captions: Iterable[str]) -> dict[str, tuple[str, ...]]:
        return _prompts(own, captions)

    groups = [
        {"name": name, "params": [row.requires_grad_()], "lr": config.training.learning_rate}
        for name, row in rows.items()
    ]
    trainable = Trainable(groups, export, trains_text=True, prompts=prompts)
    if own.norm_control:
        trainable.after_step = control_norm
    return trainable


# -- where the rows start -----------------------------------------------------


def _start(text: TextSide, name: str, own: TextualInversionConfig, seed: int) -> Tensor:
    """(vectors, D) fp32 on the CPU for one text encoder.

    As many rows as there are vectors: means of neighbours where the initializer has more tokens,
    jittered copies where it has fewer; random at the table's mean and deviation where it is empty.
    """
    table = text.vocabulary(name).float()
    generator = generator_for(seed, "rows", name, own.token)
    noise = torch.randn(own.vectors, table.shape[1], generator=generator)
    deviation: Tensor = table.std(dim=0).cpu()
    if not own.initializer.strip():
        center: Tensor = table.mean(dim=0).cpu()
        return center + deviation * noise
    tokens = _known_tokens(text, name, own.initializer)
    rows = [table[token] if isinstance(token, int) else token for token in tokens]
    given = torch.stack([row.detach().float().cpu() for row in rows])
    if len(given) >= own.vectors:
        return torch.stack([part.mean(dim=0) for part in given.tensor_split(own.vectors)])
    copied = given[torch.arange(own.vectors) % len(given)]
    copied[len(given) :] += JITTER * deviation * noise[len(given) :]
    return copied


def _known_tokens(text: TextSide, name: str, initializer: str) -> list[int | Tensor]:
    """The tokens of the initializer, of which at least one word must be a token of its own."""
    words = [_content(text, name, word) for word in re.split(r"[\s,]+", initializer.strip(" ,"))]
    if not any(len(tokens) == 1 for tokens in words) and initializer not in text.learned:
        raise SettingsError(
            (f"initializer {initializer!r} has no word that {name} knows; allowed: words of its "
             "vocabulary, such as dog, woman, painting, or nothing for a random start",)
        )  # fmt: skip
    return [token for tokens in words for token in tokens]


def _content(text: TextSide, name: str, words: str) -> list[int | Tensor]:
    """The tokens of `words` without the marks of start, end and padding."""
    marks = {token for token in text.tokenize("")[name] if isinstance(token, int)}
    tokens = text.tokenize(words)[name]
    return [token for token in tokens if not isinstance(token, int) or token not in marks]


def _median_norm(weight: Tensor) -> Tensor:
    norms: Tensor = weight.detach().float().norm(dim=1)
    return norms.median()


def _warn_of_meaning(text: TextSide, token: str) -> None:
    if token in text.learned:
        log.warning(
            "Personalize: the clip knows a learned token '%s' already; this training replaces it.",
            token,
        )
        return
    known = [name for name in text.encoders if len(_content(text, name, token)) == 1]
    if known:
        log.warning(
            "Personalize: the token '%s' is a word of %s already. With what is learned here it "
            "has its new meaning wherever it stands in a prompt; without, its old one. Take a "
            "word that means nothing, such as <%s>, to keep the two apart.",
            token, " and ".join(known), token.strip("<>"),
        )  # fmt: skip


# -- what it is learned in ----------------------------------------------------


def _prompts(own: TextualInversionConfig, captions: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """For each caption: the templates and the caption, all with the token in them.

    Raises:
        DatasetError: no caption has the token, where only they are used.
    """
    prompts: dict[str, tuple[str, ...]] = {}
    templates = [text.format(own.token) for text in TEMPLATES.get(own.templates, ())]
    for caption in captions:
        own_words = put_in(caption, own.token, own.initializer) if templates else caption
        prompts[caption] = tuple(dict.fromkeys([*templates, own_words]))
    sentences = dict.fromkeys(text for texts in prompts.values() for text in texts)
    with_token = [text for text in sentences if has_token(text, own.token)]
    if not with_token:
        raise DatasetError(
            f"The token '{own.token}' is in none of the captions, for instance "
            f"{_quoted(sentences)}, so nothing would be learned.\nWrite it into captions or the "
            "dataset's prompt, or set templates to 'object' or 'style'."
        )
    return prompts


def _quoted(texts: Iterable[str]) -> str:
    listed = list(texts)
    quoted = ", ".join(repr(text) for text in listed[:SHOWN])
    return f"{quoted} and {len(listed) - SHOWN} more" if len(listed) > SHOWN else quoted
