"""Block weights: how strongly a LoRA changes each block of a denoiser.

Written as A1111's LoRA Block Weight and the Inspire Pack write them: numbers with commas between,
one for each block, the first for BASE, which is the text encoders and all that lies in no block.
Which weight lies in which block is read from the weight's name in the model:

    UNet          input_blocks.4 is IN04, middle_block is MID, output_blocks.5 is OUT05
    transformer   double_blocks.3 is double_blocks.3, and so with any list of equal parts

A short list has one number for each block with attention, in which plain LoRAs have all their
layers: 16 of SD 1.5's 25 blocks, 11 of SDXL's 19. The blocks that it leaves out get 0, as there.
"""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Iterable, Mapping, Sequence

from ...errors import AdapterError

BASE, MID = "BASE", "MID"
SIDES = {"input_blocks": "IN", "output_blocks": "OUT"}
OF_UNET = re.compile(r"(input_blocks|output_blocks)\.(\d+)\.|middle_block\.")
ATTENTION = "transformer_blocks."
# An item of a list: a number in the path, behind which the names of its parts follow.
ITEM = re.compile(r"(.+?\.\d+)\.")
ITEM_WITH_PARTS = re.compile(r"(.+?\.\d+)\..*[^\d.].*\.")
ENTRY = re.compile(r"([\w.*]+)\s*=\s*(\S+)")
SPELLINGS = ((r"(in|out)(\d)", r"\g<1>0\2"), (r"m(id)?00?", "mid"))  # IN4: IN04; M00: MID
EVERYWHERE = ("NONE", "ALL")
OF_UNETS = ("INS", "IND", "INALL", "MIDD", "OUTD", "OUTS", "OUTALL")


class Blocks:
    """The blocks of one denoiser.

    Attributes:
        names: of all blocks, in the model's order, without BASE.
        short: of those that a short list has; () where there is none.
        presets: the words that stand for a list.
    """

    def __init__(self, weights: Iterable[str]) -> None:
        """weights: names of the denoiser's weights, such as input_blocks.0.0.weight."""
        weights = list(weights)
        self._is_unet = any(weight.startswith("input_blocks.") for weight in weights)
        found = (ITEM_WITH_PARTS.match(weight) for weight in weights)
        self._items = {item[1] for item in found if item}
        held = {self.of(weight): None for weight in weights}
        attending = {self.of(weight): None for weight in weights if ATTENTION in weight}
        self.names = _in_order(held)
        self.short = _in_order(attending) if self._is_unet else ()
        self.presets = EVERYWHERE + (OF_UNETS if self._is_unet else ())

    def of(self, weight: str) -> str:
        """The block that a weight of the denoiser lies in, or BASE."""
        if self._is_unet:
            found = OF_UNET.match(weight)
            if found is None:
                return BASE
            return f"{SIDES[found[1]]}{int(found[2]):02d}" if found[1] else MID
        item = ITEM.match(weight)
        return item[1] if item and item[1] in self._items else BASE

    def weights(self, text: str, called: str) -> dict[str, float]:
        """What `text` gives each block and BASE.

        Args:
            text: numbers, names with numbers, or a preset.
            called: what messages call it.

        Raises:
            AdapterError: the text is none of these for this model.
        """
        entries = [entry.strip() for entry in re.split(r"[,\n]", text.strip())]
        if len(entries) == 1 and entries[0].upper() in self.presets:
            return self._preset(entries[0].upper())
        if any("=" in entry for entry in entries):
            return self._named(entries, called)
        numbers = [self._number(entry, called) for entry in entries]
        for listed in (self.names, self.short):
            if listed and len(numbers) == len(listed) + 1:
                every = dict.fromkeys(self.names, 0.0)
                return every | dict(zip((BASE, *listed), numbers, strict=True))
        raise self._refusal(f"has {len(numbers)} numbers", called)

    def _preset(self, word: str) -> dict[str, float]:
        if word in EVERYWHERE:
            return dict.fromkeys((BASE, *self.names), float(word == "ALL"))
        inner = [name for name in self.short if name.startswith("IN")]
        outer = [name for name in self.short if name.startswith("OUT")]
        # S is shallow, near the picture; D is deep, near the middle.
        parts = {
            "INS": inner[: len(inner) // 2], "IND": inner[len(inner) // 2 :], "INALL": inner,
            "OUTD": outer[: len(outer) // 2], "OUTS": outer[len(outer) // 2 :], "OUTALL": outer,
        }  # fmt: skip
        parts["MIDD"] = [*parts["IND"], MID, *parts["OUTD"]]
        return {name: float(name in (BASE, *parts[word])) for name in (BASE, *self.names)}

    def _named(self, entries: Sequence[str], called: str) -> dict[str, float]:
        numbers: dict[str, float] = {}
        for entry in entries:
            found = ENTRY.fullmatch(entry)
            if found is None:
                raise self._refusal(f"has the entry {entry[:40]!r}", called)
            pattern = self._spelled(found[1].lower())
            if pattern in numbers or not any(self._fitting([pattern], n) for n in self._all):
                why = "twice" if pattern in numbers else "which is none of its blocks"
                raise self._refusal(f"names {found[1]!r}, {why}", called)
            numbers[pattern] = self._number(found[2], called)
        return {name: _of_closest(numbers, self._fitting(numbers, name)) for name in self._all}

    @property
    def _all(self) -> tuple[str, ...]:
        return (BASE, *self.names)

    def _spelled(self, name: str) -> str:
        for other, ours in SPELLINGS if self._is_unet else ():
            name = re.sub(f"^{other}$", ours, name)
        return name

    @staticmethod
    def _fitting(patterns: Iterable[str], name: str) -> list[str]:
        return [one for one in patterns if fnmatch.fnmatchcase(name.lower(), one)]

    def _number(self, entry: str, called: str) -> float:
        try:
            number = float(entry)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise self._refusal(f"has the entry {entry[:40]!r}", called)
        return number

    def _refusal(self, what: str, called: str) -> AdapterError:
        lists = [self.short] if self.short and self.short != self.names else []
        allowed = [f"{len(one) + 1} numbers ({_listed(one)})" for one in (*lists, self.names)]
        example = f"{self.names[-1]}=0.5, *=1" if self.names else "BASE=0.5"
        return AdapterError(
            f"{called}: blocks {what}; allowed for this model: {', '.join(allowed)}, names as in "
            f"'{example}', or one of {', '.join(self.presets)}.\nWrite one of these, or leave it "
            "empty for no limit."
        )


def _in_order(names: Mapping[str, None]) -> tuple[str, ...]:
    return tuple(name for name in names if name != BASE)


def _of_closest(numbers: Mapping[str, float], fitting: Sequence[str]) -> float:
    """The number of the pattern that says most; 1 where none fits."""
    closest = max(fitting, key=lambda pattern: len(pattern.replace("*", "")), default=None)
    return 1.0 if closest is None else numbers[closest]


def _listed(names: Sequence[str]) -> str:
    """Names, those that count up shortened: BASE, IN00 to IN11, MID, OUT00 to OUT11."""
    runs: list[list[str]] = [[BASE]]
    for name in names:
        last = re.fullmatch(r"(.*?)(\d+)", runs[-1][-1])
        now = re.fullmatch(r"(.*?)(\d+)", name)
        if last and now and now[1] == last[1] and int(now[2]) == int(last[2]) + 1:
            runs[-1].append(name)
        else:
            runs.append([name])
    return ", ".join(", ".join(run) if len(run) < 3 else f"{run[0]} to {run[-1]}" for run in runs)
