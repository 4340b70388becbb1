"""Compares the translations of the nodes with what the nodes say in English.

    python -m docs.locales [--comfyui DIR] [--write]

ComfyUI shows locales/<language>/nodeDefs.json in place of the nodes' own texts, and reads nothing
of locales/english.json: that is what was translated. So where a node's text has changed, a test
fails. Translate it anew in each language, then let --write put the new English there.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.conftest import DEV_DIR
from tests.host import ROOT, Host

Texts = dict[str, str]  # by its place, as in "PersonalizeLoss.inputs.prior.tooltip"

FOLDER = ROOT / "locales"
ENGLISH = FOLDER / "english.json"
NODES = "nodeDefs.json"
# Names that other languages have from English, as trainers and papers write them.
KEPT = {"rank", "alpha", "token", "LoRA", "CLIP", "CLIP-I", "CLIP-T", "VAE", "CFG", "DINO", "URL"}
NUMBER = re.compile(r"\d+(?:\.\d+)*(?:e-\d+)?")
# Names of files, functions and values, with what makes them such.
CODE = re.compile(
    r"(?<!\w)'[^']+'(?!\w)|%\w+%|<\w+>|--\w+|https?://\S+"
    r"|\*?(?:[\w-]+[_/.=])+\*?[\w-]+(?:/\*)?|(?<!\w)\.[a-z]+\b"
)
# Front ends before 1.47 read every text as a message of vue-i18n, which these would break.
SYNTAX = re.compile(r"[{}|@]")


def english_of(object_info: Mapping[str, Any]) -> dict[str, Any]:
    """What the nodes of this pack say, in the form of ComfyUI's nodeDefs.json."""
    found = {}
    for node, schema in object_info.items():
        if not node.startswith("Personalize"):
            continue
        sections = (schema["input"].get(name, {}) for name in ("required", "optional"))
        inputs = {name: spec[1] for section in sections for name, spec in section.items()}
        outputs = zip(schema["output_name"], schema["output_tooltips"], strict=True)
        found[node] = {
            "display_name": schema["display_name"],
            "description": schema["description"],
            "inputs": {
                name: {"name": options.get("display_name") or name, "tooltip": options["tooltip"]}
                for name, options in inputs.items()
            },
            "outputs": {
                str(place): {"name": name, "tooltip": tooltip}
                for place, (name, tooltip) in enumerate(outputs)
            },
        }
    return found


def flat(nested: Mapping[str, Any], above: str = "") -> Texts:
    """Texts by the path of their keys."""
    found: Texts = {}
    for key, value in nested.items():
        path = f"{above}.{key}" if above else key
        found |= {path: value} if isinstance(value, str) else flat(value, path)
    return found


def read(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def written(nested: Mapping[str, Any]) -> str:
    return json.dumps(nested, ensure_ascii=False, indent=1) + "\n"


def languages() -> list[str]:
    return sorted(file.parent.name for file in FOLDER.glob(f"*/{NODES}"))


def problems(english: Mapping[str, Any], translation: Mapping[str, Any]) -> Iterator[str]:
    """What is missing, left over, or not the same in a translation, a line each."""
    source, target = flat(english), flat(translation)
    names = _names(target)
    yield from (f"{place}: missing" for place in source if place not in target)
    yield from (f"{place}: left over" for place in target if place not in source)
    for place, text in target.items():
        if place in source:
            found = _differences(place, source[place], text, names)
            yield from (f"{place}: {why}" for why in found)


def _names(translation: Texts) -> dict[str, set[str]]:
    """What the inputs of each name are called on the nodes."""
    found: dict[str, set[str]] = {}
    for place, text in translation.items():
        if ".inputs." in place and place.endswith(".name"):
            found.setdefault(place.split(".")[-2], set()).add(text)
    return found


def _differences(
    place: str, source: str, text: str, names: Mapping[str, set[str]]
) -> Iterator[str]:
    if _is_english(text):
        yield f"in English: {text}"
    if SYNTAX.search(text):
        yield "has one of {}|@, which front ends read as syntax"
    if place.endswith("name"):
        return
    if ".inputs." in place:
        name = place.split(".")[-2]
        shown = {one.casefold() for one in names.get(name, ())}
        if not text.endswith(f"［{name}］") and name not in shown:
            yield f"does not end in ［{name}］, as errors, logs and Sweep call it"
        text = text.removesuffix(f"［{name}］")
    before, now = (Counter(NUMBER.findall(one)) for one in (source, text))
    if before != now:
        yield f"other numbers: {', '.join((before - now) + (now - before))}"
    for code in CODE.findall(source):
        if code not in text and not any(one in text for one in names.get(code, ())):
            yield f"without {code}"


def _is_english(text: str) -> bool:
    own = any(letter.isalpha() and not letter.isascii() for letter in text)
    return not own and text.rstrip("0123456789 ") not in KEPT


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    default = os.environ.get("PERSONALIZE_COMFYUI") or DEV_DIR / "ComfyUI-0.30.0"
    parser.add_argument("--comfyui", type=Path, default=Path(default))
    parser.add_argument("--write", action="store_true", help="the English texts, once translated")
    asked = parser.parse_args()
    with Host(asked.comfyui) as host:
        english = english_of(host.object_info())
    before, now = flat(read(ENGLISH)), flat(english)
    for place, text in now.items():
        if before.get(place) != text:
            print(f"to translate: {place}: {text}")
    for language in languages():
        for problem in problems(english, read(FOLDER / language / NODES)):
            print(f"{language}: {problem}")
    if asked.write:
        ENGLISH.write_text(written(english), encoding="utf-8")


if __name__ == "__main__":
    main()
