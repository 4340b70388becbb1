"""What the pages of this pack say: all of it in each language, and nothing but through `tr`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.host import ROOT
from tests.test_js import run

JS = sorted((ROOT / "js").rglob("*.js"))
PAGES = [file for file in JS if file.name != "locale.js"]  # which warns in the console
STRING = r'"(?:[^"\\\n]|\\.|\\\n)*"'
TOLD = re.compile(rf"(?<![\w.])(?:tr|mark)\(\s*({STRING})\s*[,)]")
ANY_CALL = re.compile(r"(?<![\w.])(?<!function )tr\(\s*(?!\")(\S+)")
COMMENT = re.compile(r"(?m)^\s*//.*$|\s//\s.*$")
PLACEHOLDER = re.compile(r"\{(\w+)\}")
# What people read. A title may be a name that is no word of ours: `${name}`.
SHOWN = "textContent|title|placeholder|ariaLabel|ariaValueText|alt|label|summary|detail|message"
SHOWN += "|tooltip"
GIVEN = re.compile(
    rf"""(?:\b(?:{SHOWN})\s*(?:=|:)(?!\s*make)\s*|\bbutton\(\s*|\btell\("\w+",\s*)([^,;]*?)(?=[,;}})\n])"""
)
LITERAL = re.compile(r'"(?!Aa")[^"\n]*[A-Za-z]{2,}[^"\n]*"|`[^`$]*[A-Za-z]{2,}[^`]*`')
WORDS = re.compile(r'"[^"\n]*[A-Za-z]{3,} [a-z]{2,}[^"\n]*"')
NO_TEXT = re.compile(  # but styles, classes, and names of a widget and a property
    r"sans-serif|solid |var\(|scrolled details|picture none|personalize-|pi pi"
    r"|show limits|upload pictures"
)


def texts() -> dict[str, Path]:
    """Every text of the pages with a file that has it."""
    found = ((json.loads(text.replace("\\\n", "")), file) for file in JS for text in told(file))
    return dict(found)


def told(file: Path) -> Iterator[str]:
    return (match[1] for match in TOLD.finditer(file.read_text(encoding="utf-8")))


@pytest.mark.parametrize("language", ["ja", "zh"])
def test_each_text_of_the_pages_is_translated(language: str) -> None:
    file = ROOT / "locales" / language / "main.json"
    translated = json.loads(file.read_text(encoding="utf-8"))["personalize"]
    wanted = texts()
    assert len(wanted) > 200, "they are found"
    assert {text: wanted[text].name for text in wanted.keys() - translated.keys()} == {}, "missing"
    assert translated.keys() - wanted.keys() == set(), "no page says these any more"
    assert [text for text, words in translated.items() if not words.strip()] == []
    for text, words in translated.items():
        assert set(PLACEHOLDER.findall(words)) == set(PLACEHOLDER.findall(text)), (text, words)
    same = [text for text, words in translated.items() if words == text]
    assert same == [], "left in English"


@pytest.mark.parametrize("file", PAGES, ids=lambda file: file.stem)
def test_what_a_page_shows_goes_through_tr(file: Path) -> None:
    text = COMMENT.sub("", file.read_text(encoding="utf-8"))
    if file.name != "status.js":  # whose texts are marked in a list
        assert ANY_CALL.findall(text) == [], "a text that a test can find is written in the call"
    bare = TOLD.sub("", text)
    shown = [match[0] for given in GIVEN.findall(bare) if (match := LITERAL.search(given))]
    sentences = [words for words in WORDS.findall(bare) if not NO_TEXT.search(words)]
    assert (shown, sentences) == ([], [])


SPOKEN = """
import { api } from "./scripts/api.js";
import { app } from "./scripts/app.js";
const settings = new EventTarget();
app.ui = { settings };
app.extensionManager = { setting: { get: () => "ja" } };
api.answer = {
  ja: { personalize: { "step {step}": "{step} \\u6b69", "loss {loss}": "\\u640d\\u5931 {loss}" } },
};
const { count, language, tr } = await import("./extensions/personalize/locale.js");
const { statusWords } = await import("./extensions/personalize/training/status.js");
const said = () => [language(), tr("step {step}", { step: count(1234) }), tr("no {more}", {})];
const first = said();
const line = statusWords("my.heading | {x}\\nstep 3/9 \\u00b7 loss 0.1 \\u00b7 1.0 s/it");
const asked = [api.fetched.length];
async function change(value) {
  settings.dispatchEvent(Object.assign(new Event("Comfy.Locale.change"), { detail: { value } }));
  await new Promise((resolve) => setTimeout(resolve, 5));
  return said();
}
const changed = [await change("en"), await change("fr"), await change("ja")];
api.fetchApi = () => Promise.reject(new TypeError("offline"));
const warned = [];
console.warn = (text) => warned.push(text);
changed.push(await change("zh"));
console.log(JSON.stringify({ first, line, asked, changed, warned }));
"""


def test_texts_follow_the_language_of_the_setting(tmp_path: Path) -> None:
    found = run(tmp_path, SPOKEN)
    english, japanese = ["en", "step 1,234", "no {more}"], ["ja", "1,234 歩", "no {more}"]
    assert found["first"] == japanese
    assert found["line"] == "my.heading | {x}\nstep 3/9 · 損失 0.1 · 1.0 s/it"
    assert found["asked"] == [1], "the host is asked once, and not for English"
    assert found["changed"] == [english, english, japanese, english]
    assert len(found["warned"]) == 1, "a host that does not answer is told of"


def test_status_lines_are_those_that_the_server_writes() -> None:
    """Between the values, each sentence of status.js stands in the code that says it."""
    sources = [*(ROOT / "nodes/host/runs").glob("*.py"), ROOT / "nodes/host/workbench/sweep.py"]
    written = "\n".join(file.read_text(encoding="utf-8") for file in sources)
    status = next(file for file in JS if file.name == "status.js")
    for sentence in map(json.loads, told(status)):
        pieces = [
            piece.strip(" ,:;") for piece in re.split(r"\{\w+\}|; run again|, loss", sentence)
        ]
        assert [piece for piece in pieces if len(piece) > 1 and piece not in written] == [], (
            sentence
        )
