"""The settings that Textual Inversion alone has."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..field import Settings, setting

TOKEN = re.compile(r"[\w*-]+|<[\w*-]+>")
TEMPLATES = ("object", "style", "captions only")


@dataclass(frozen=True)
class TextualInversionConfig(Settings):
    """The new word: how it is written, where it starts, how large it is."""

    token: str = setting(
        "<sks>",
        "How the new word is written in prompts: one word of letters, digits, _, - and *, also in "
        "< and >. Take one that means nothing yet; large and small letters are the same.",
        advanced=False,
    )
    initializer: str = setting(
        "object",
        "What the pictures show, in a word or a few that the base model knows, such as 'dog': the "
        "new word starts there. Empty: at random, which takes longer.",
        advanced=False, source="D needs one; K copies it over all vectors",
    )  # fmt: skip
    vectors: int = setting(
        4,
        "Tokens that the new word is worth: more learn more detail, and leave less of the 75 "
        "tokens of a prompt. 1 to 8 are usual.",
        min=1, max=32, advanced=False, source="K 4; D, O 1",
    )  # fmt: skip
    templates: str = setting(
        "object",
        "Sentences the word is learned in. object and style: some of our own, and each picture's "
        "caption with the word put in (for the initializer where the caption has it, else at its "
        "beginning). captions only: your captions as they are, which must have the word in them.",
        choices=TEMPLATES, source="P arXiv 2208.01618; D object",
    )  # fmt: skip
    norm_control: bool = setting(
        False,
        "Keep each vector as long as the vocabulary's are (their median): the word stays easier "
        "to combine with others, and learns less.",
        source="O preserve_embedding_norm",
    )

    def problems(self) -> list[str]:
        allowed = "one word of letters, digits, _, - and *, also in < and >"
        fits = TOKEN.fullmatch(self.token)
        return [] if fits else [f"token is {self.token!r}; allowed: {allowed}"]

    @property
    def trains_text(self) -> bool:
        return True
