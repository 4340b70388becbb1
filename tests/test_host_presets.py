"""The route that tells the front end of presets, in a real ComfyUI."""

from __future__ import annotations

import json
import urllib.error
import urllib.request

import pytest

from tests.graphs import SETTINGS_NODES
from tests.host import ROOT, Host
from tests.test_host_lora import any_host
from trainers.settings.run import METHOD_CONFIGS, ON_OTHERS, ON_TRAINER

__all__ = ["any_host"]  # a fixture

ROUTE = "/personalize/presets"
NODES = {
    "lora": "PersonalizeTrainLora",
    "dreambooth": "PersonalizeTrainDreamBooth",
    "textual_inversion": "PersonalizeTrainTextualInversion",
}


@pytest.mark.parametrize("method", METHOD_CONFIGS)
def test_route_tells_what_is_in_the_files_and_where_each_setting_stands(
    any_host: Host, method: str
) -> None:
    answer = any_host.get(f"{ROUTE}?method={method}")
    assert (answer["problems"], answer["nodes"]) == ([], SETTINGS_NODES)
    files = sorted((ROOT / "presets" / method).glob("*.json"))
    assert [preset["name"] for preset in answer["presets"]] == [file.stem for file in files]
    inputs = any_host.object_info(NODES[method])["input"]["optional"]
    for preset, file in zip(answer["presets"], files, strict=True):
        facts = json.loads(file.read_text(encoding="utf-8"))
        assert [preset["about"], preset["source"]] == [facts["about"], facts["source"]]
        assert {s["name"]: s["value"] for s in preset["settings"]} == facts["settings"]
        for setting in preset["settings"]:
            if setting["input"] is None:
                assert setting["name"] in ON_TRAINER[method]
                assert inputs[setting["name"]][1]["default"] == setting["default"]
            else:
                assert setting["name"] in ON_OTHERS[setting["input"]]


def test_route_names_models_as_people_do(any_host: Host) -> None:
    presets = {p["name"]: p for p in any_host.get(f"{ROUTE}?method=lora")["presets"]}
    assert presets["Face (SDXL)"]["models"] == ["Stable Diffusion XL"]


@pytest.mark.parametrize("query", ["", "?method=", "?method=flux"])
def test_route_refuses_other_methods(any_host: Host, query: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{any_host.url}{ROUTE}{query}")
    assert refused.value.code == 400
    error = json.loads(refused.value.read())["error"]
    assert error.endswith("allowed: lora, dreambooth, textual_inversion")


def test_training_node_has_no_preset_among_its_inputs(any_host: Host) -> None:
    inputs = any_host.object_info("PersonalizeTrainDreamBooth")["input"]
    assert not [name for part in inputs.values() for name in part if "preset" in name]
