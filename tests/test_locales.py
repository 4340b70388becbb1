"""The nodes in other languages: nothing is missing, left over, or says something else."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from typing import Any

import pytest

from docs.locales import ENGLISH, FOLDER, NODES, english_of, languages, problems, read
from tests.browser import RENDERERS, page
from tests.host import ROOT, Host

TRANSLATED = [file.parent.name for file in FOLDER.glob(f"*/{NODES}")]
SETTING = re.compile(r'"(Personalize\.\w+)"')  # in the front-end extension
SOURCE: dict[str, Any] = {
    "Node": {
        "display_name": "A node",
        "description": "It trains.",
        "inputs": {
            "warmup_steps": {
                "name": "warmup_steps",
                "tooltip": "As 'adamw': 0.5 of learning_rate. (Source: arXiv 2303.09556.)",
            },
            "learning_rate": {"name": "learning_rate", "tooltip": "See run.json in output/."},
            "rank": {"name": "rank", "tooltip": "%run% of it."},
        },
        "outputs": {"0": {"name": "lora", "tooltip": "It."}},
    }
}
GOOD: dict[str, Any] = {
    "Node": {
        "display_name": "节点",
        "description": "训练。",
        "inputs": {
            "warmup_steps": {
                "name": "预热",
                "tooltip": "'adamw'：“学习率”的 0.5。（来源：arXiv 2303.09556。）［warmup_steps］",
            },
            "learning_rate": {
                "name": "学习率",
                "tooltip": "见 output/ 中 run.json。［learning_rate］",
            },
            "rank": {"name": "rank", "tooltip": "它的 %run%。"},
        },
        "outputs": {"0": {"name": "LoRA", "tooltip": "它。"}},
    }
}
WRONG = {  # by what is put where: what is said of it
    "display_name": ("A node", "in English: A node"),
    "description": ("训练 {a|b}。", "syntax"),
    "inputs.warmup_steps.name": ("warmup_steps", "in English: warmup_steps"),
    "inputs.learning_rate.tooltip": (
        "见 output/ 中 run.json。",
        "does not end in ［learning_rate］",
    ),
    "inputs.rank.tooltip": ("它的名称。", "without %run%"),
    "outputs.0.tooltip": ("它 1。", "other numbers: 1"),
    "outputs.1": ("它。", "left over"),
    "inputs.rank": (None, "missing"),
}


def test_a_faithful_translation_has_no_problems() -> None:
    assert list(problems(SOURCE, GOOD)) == []


@pytest.mark.parametrize("place", WRONG)
def test_what_is_wrong_with_a_translation_is_found(place: str) -> None:
    text, said = WRONG[place]
    given = copy.deepcopy(GOOD)
    *above, last = place.split(".")
    nested = given["Node"]
    for key in above:
        nested = nested[key]
    if text is None:
        del nested[last]
    else:
        nested[last] = text
    found = list(problems(SOURCE, given))
    assert found
    assert all(f"Node.{place}" in one and said in one for one in found), found


@pytest.mark.parametrize(
    ("before", "after"),
    [("0.5", "0.05"), ("'adamw'", "adamw"), ("学习率", "它"), ("2303", "2033")],
)
def test_numbers_and_names_in_a_text_are_those_of_the_source(before: str, after: str) -> None:
    given = copy.deepcopy(GOOD)
    one = given["Node"]["inputs"]["warmup_steps"]
    one["tooltip"] = one["tooltip"].replace(before, after)
    assert list(problems(SOURCE, given))


@pytest.mark.parametrize("language", TRANSLATED)
def test_translation_says_what_the_english_says(language: str) -> None:
    assert list(problems(read(ENGLISH), read(FOLDER / language / NODES))) == []


def test_languages_are_chinese_and_japanese() -> None:
    assert {"ja", "zh"} <= set(TRANSLATED)
    assert languages() == sorted(TRANSLATED)


def test_texts_were_translated_as_they_are_now(host: Host) -> None:
    """Where they were not: translate what differs in each language, then

    python -m docs.locales --write
    """
    info = host.object_info()
    assert english_of(info) == read(ENGLISH)
    served = host.get("/i18n")
    parts = {part for node in read(ENGLISH) for part in info[node]["category"].split("/")}
    for language in TRANSLATED:
        told = served[language]
        assert told["nodeDefs"] == read(FOLDER / language / NODES)
        assert set(told["nodeCategories"]) == parts


def settings() -> Iterator[str]:
    for file in (ROOT / "js").rglob("*.js"):
        yield from SETTING.findall(file.read_text(encoding="utf-8"))


@pytest.mark.parametrize("language", TRANSLATED)
def test_settings_are_translated(language: str) -> None:
    told = read(FOLDER / language / "settings.json")
    assert set(told) == {name.replace(".", "_") for name in settings()}
    assert all(set(one) == {"name", "tooltip"} for one in told.values())


# -- in a page --------------------------------------------------------------------------------

PLACED = """() => {
  const node = LiteGraph.createNode("PersonalizeTrainLora");
  node.pos = [300, 100];
  app.graph.add(node);
  const { category } = node.constructor;
  const drawn = Object.fromEntries(node.widgets.map(({ name, label }) => [name, label]));
  const [model] = node.inputs;
  const rate = node.widgets.find(({ name }) => name === "learning_rate").value;
  return { title: node.title, category, drawn, rate, model: [model.name, model.localized_name] };
}"""
SHOWN = """(text) => [...document.querySelectorAll(".lg-node *")].some(
  (one) => one.children.length === 0 && one.textContent.trim() === text)"""


@pytest.mark.parametrize("renderer", RENDERERS)
def test_page_shows_a_node_in_chinese(host: Host, renderer: str) -> None:
    told = read(FOLDER / "zh" / NODES)["PersonalizeTrainLora"]
    categories = read(FOLDER / "zh" / "main.json")["nodeCategories"]
    with page(host, renderer) as opened:
        opened.set({"Comfy.Locale": "zh"})
        try:
            opened.open()
            opened.run("() => app.graph.clear()")
            found = opened.run(PLACED)
            assert found["title"] == told["display_name"]
            assert found["category"] == f"{categories['personalize']}/{categories['train']}"
            assert found["drawn"]["learning_rate"] == told["inputs"]["learning_rate"]["name"]
            assert found["model"] == ["model", told["inputs"]["model"]["name"]]
            if renderer != "classic":  # the other one paints a canvas
                for text in (told["display_name"], told["inputs"]["learning_rate"]["name"]):
                    opened.until(SHOWN, text)
            asked = opened.run("async () => Object.values((await app.graphToPrompt()).output)[0]")
            assert asked["inputs"]["learning_rate"] == found["rate"]
            assert opened.complaints == []
        finally:
            opened.set({"Comfy.Locale": "en"})
