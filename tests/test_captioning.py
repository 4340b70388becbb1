"""Models that write captions: asked as their own libraries ask them, refused with a sentence."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
import torch
import transformers
from PIL import Image

from tests.caption_models import KINDS
from tests.dataset_files import noise
from trainers.data.beside.captioner import Captioner
from trainers.data.beside.tagger import Tagger, squared, tags_of
from trainers.data.captions import with_prefix
from trainers.errors import SettingsError, UnavailableError
from trainers.settings.dataset import CaptioningConfig

RED, NOISE = Image.new("RGB", (64, 40), "red"), noise(64, 32)
LENGTH = 6
# The mean over pixels, (3) in BGR; W (3, 5) and b (5) to logits; a sigmoid. ONNX opset 13.
TAGGER = (
    "CAgSADqVAgo2CgVpbnB1dBIBbSIKUmVkdWNlTWVhbioNCgRheGVzQAFAAqABByoPCghrZWVwZGltcxgAoAECChIKAW0K"
    "AVcKAWISAWwiBEdlbW0KFAoBbBIGb3V0cHV0IgdTaWdtb2lkEgR0YWdzKkcIAwgFEAFCAVdKPAAAAAAAAAAAAAAAPQAA"
    "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAPQAAAAAAAMA8AACAPCodCAUQAUIBYkoUAABAQAAAAMAAAADA"
    "AABgwAAAQMBaJAoFaW5wdXQSGwoZCAESFQoHEgViYXRjaAoCCBAKAggQCgIIA2IdCgZvdXRwdXQSEwoRCAESDQoHEgVi"
    "YXRjaAoCCAVCBAoAEA0="
)
TAGS = (
    "tag_id,name,category,count\n"
    "9,safe,9,1\n1,red_sky,0,1\n2,blue_sky,0,1\n3,^_^,0,1\n4,rex_(dog),4,1\n"
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("captioners")
    return {kind: make(root / kind) for kind, make in KINDS.items()}


def captioner(folder: Path, instruction: str = "", **more: object) -> Captioner:
    check = more.get("check", lambda: None)
    return Captioner(folder, instruction, LENGTH, torch.device("cpu"), torch.float32, check)  # type: ignore[arg-type]


def test_blip_says_what_its_own_class_says(folders: dict[str, Path]) -> None:
    model = transformers.BlipForConditionalGeneration.from_pretrained(folders["blip"])
    processor = transformers.BlipProcessor.from_pretrained(folders["blip"])
    for words in ("", "a photo of"):
        ours, said = captioner(folders["blip"], words), []
        for image in (RED, NOISE):
            inputs = processor(image, *filter(None, [words]), return_tensors="pt")
            made = model.generate(**inputs, max_new_tokens=LENGTH, do_sample=False)
            said.append(processor.decode(made[0], skip_special_tokens=True).strip())
        assert [ours(RED), ours(NOISE)] == said
        assert len({*said}) == 2
        assert all(text.startswith(words) for text in said), "it goes on from the words"


def test_llava_is_talked_to_and_its_question_is_no_part_of_the_caption(
    folders: dict[str, Path],
) -> None:
    model = transformers.LlavaForConditionalGeneration.from_pretrained(folders["llava"])
    processor = transformers.LlavaProcessor.from_pretrained(folders["llava"])
    ours = captioner(folders["llava"], "a dog of red")
    said = []
    for image in (RED, NOISE):
        inputs = processor(
            images=image, text="USER: <image> a dog of red ASSISTANT:", return_tensors="pt"
        )
        made = model.generate(**inputs, max_new_tokens=LENGTH, do_sample=False)
        answer = made[0, inputs["input_ids"].shape[1] :]
        said.append(processor.decode(answer, skip_special_tokens=True).strip())
    assert [ours(RED), ours(NOISE)] == said
    assert said[0] != said[1]


def test_florence2_is_asked_by_its_tasks(folders: dict[str, Path]) -> None:
    model = transformers.Florence2ForConditionalGeneration.from_pretrained(folders["florence2"])
    processor = transformers.Florence2Processor.from_pretrained(folders["florence2"])
    for task, asked in (("<DETAILED_CAPTION>", ""), ("<CAPTION>", "<CAPTION>")):
        inputs = processor(images=RED, text=task, return_tensors="pt")
        made = model.generate(**inputs, max_new_tokens=LENGTH, do_sample=False)
        theirs = processor.batch_decode(made, skip_special_tokens=True)[0].strip()
        assert captioner(folders["florence2"], asked)(RED) == theirs
        assert theirs
    with pytest.raises(SettingsError, match="a Florence-2, which knows tasks alone.*<CAPTION>"):
        captioner(folders["florence2"], "what is this?")


def test_cancel_is_heard_in_the_middle_of_a_caption(folders: dict[str, Path]) -> None:
    asked = []

    def cancel() -> None:
        asked.append(1)
        if len(asked) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        captioner(folders["llava"], check=cancel)(RED)


def test_models_that_cannot_be_used_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    config = json.loads((folders["blip"] / "config.json").read_text())
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(SettingsError, match="does not say what it is"):
        captioner(other)
    (other / "config.json").write_text('{"model_type": "no_such"}')
    with pytest.raises(UnavailableError, match="cannot be loaded by transformers .* without code"):
        captioner(other)
    for file in folders["blip"].iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    config["text_config"]["num_hidden_layers"] += 1  # as of another repository's spelling
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(SettingsError, match="weights do not fit its class.*are missing"):
        captioner(other)
    (other / "model.safetensors").rename(other / "model.bin")
    with pytest.raises(UnavailableError, match="weights in safetensors"):
        captioner(other)


# -- taggers ------------------------------------------------------------------


@pytest.fixture
def tagger(tmp_path: Path) -> Path:
    (tmp_path / "selected_tags.csv").write_text(TAGS)
    (tmp_path / "model.onnx").write_bytes(base64.b64decode(TAGGER))
    return tmp_path / "model.onnx"


def test_tagger_lists_what_is_likely_enough(tagger: Path) -> None:
    pytest.importorskip("onnxruntime")
    square = Image.new("RGB", (32, 32), "red")  # red_sky 0.997, ^_^ 0.92, rex 0.73, blue_sky 0.12
    assert Tagger(tagger, CaptioningConfig())(square) == "red sky, ^_^"
    every = CaptioningConfig(threshold=0.1, character_threshold=0.7, exclude_tags="RED_sky, x")
    assert Tagger(tagger, every)(square) == "rex (dog), ^_^, blue sky"
    white = Tagger(tagger, CaptioningConfig())(Image.new("RGB", (32, 8), "red"))
    assert white == "red sky, blue sky, ^_^", "white above and below is blue too"


def test_tagger_with_another_ones_list_is_refused(tagger: Path) -> None:
    pytest.importorskip("onnxruntime")
    tagger.with_suffix(".csv").write_text(TAGS + "5,more,0,1\n")
    with pytest.raises(SettingsError, match="with 5 tags, but its list has 6"):
        Tagger(tagger, CaptioningConfig())
    tagger.with_suffix(".csv").unlink()
    tagger.write_bytes(b"no model")
    with pytest.raises(SettingsError, match="onnxruntime cannot read"):
        Tagger(tagger, CaptioningConfig())


def test_tagger_without_its_package_says_how_to_get_it(
    tagger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(UnavailableError, match="pip install onnxruntime"):
        Tagger(tagger, CaptioningConfig())
    tagger.with_name("selected_tags.csv").unlink()
    with pytest.raises(SettingsError, match="no list of tags beside it"):
        tags_of(tagger)


def test_taggers_see_pictures_whole_in_bgr_on_white() -> None:
    found = squared(Image.new("RGB", (40, 20), (255, 0, 10)), 40)
    assert found.shape == (40, 40, 3)
    assert found[20, 20].tolist() == [10, 0, 255]
    assert found[2, 20].tolist() == found[38, 20].tolist() == [255, 255, 255]


# -- trigger words ------------------------------------------------------------


@pytest.mark.parametrize(
    ("prefix", "text", "found"),
    [
        ("sks dog", "on a beach", "sks dog, on a beach"),
        (" sks  dog, ", "on a beach", "sks dog, on a beach"),
        ("photo of sks:", "on a beach", "photo of sks: on a beach"),
        ("sks dog", "Sks dog on a beach", "Sks dog on a beach"),
        ("sks dog", "sks doghouse", "sks dog, sks doghouse"),
        ("sks dog,", "", "sks dog"),
        ("", "on a beach", "on a beach"),
    ],
)
def test_trigger_word_comes_before_a_caption_once(prefix: str, text: str, found: str) -> None:
    assert with_prefix(prefix, text) == found
    assert with_prefix(prefix, found) == found
