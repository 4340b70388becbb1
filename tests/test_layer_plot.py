"""What a LoRA keeps of each layer, drawn: as numbers, and as columns of pixels."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tests.test_plot import num_pixels, spread
from trainers.methods.adapters.low_rank import Kept
from trainers.runs.pictures.layer_plot import Part, draw_layers, parts_of, title
from trainers.runs.pictures.plot import LOOKS

DARK = LOOKS["dark"]


def layers(num: int, rank: int = 8, lost: float = 0.1) -> list[Kept]:
    return [Kept(f"lora_unet_down_blocks_{i}", rank, 1.0, lost) for i in range(num)]


def columns(picture: Image.Image, colour: str) -> np.ndarray:
    """How many pixels of each column of the picture are exactly of that colour."""
    wanted = Image.new("RGB", (1, 1), colour).getpixel((0, 0))
    return (np.asarray(picture) == wanted).all(axis=2).sum(axis=0)


def test_parts_are_the_words_after_the_start() -> None:
    names = [
        "lora_unet_time_embedding_linear_1", "lora_unet_conv_in",
        "lora_unet_down_blocks_0_resnets_0_conv1", "lora_unet_down_blocks_3_downsamplers_0_conv",
        "lora_unet_mid_block_attentions_0_proj_in", "lora_te_text_model_encoder_layers_0_mlp_fc1",
        "lora_te1_text_model_encoder_layers_0_mlp_fc1",
    ]  # fmt: skip
    assert parts_of(names) == [
        Part("time_embedding", 0, 1), Part("conv_in", 1, 2), Part("down_blocks", 2, 4),
        Part("mid_block", 4, 5), Part("text_model", 5, 7),
    ]  # fmt: skip
    dotted = ["diffusion_model.double_blocks.0.img_attn.qkv", "diffusion_model.final_layer.linear"]
    assert [part.name for part in parts_of(dotted)] == ["double_blocks", "final_layer"]
    assert parts_of(["7.odd"]) == [Part("7.odd", 0, 1)]


def test_title_has_the_total_and_the_ranks() -> None:
    kept = [Kept("a", 2, 3.0, 0.3), Kept("b", 5, 4.0, 0.0), Kept("norm.weight", 0, 1.0, 1.0)]
    assert title(kept) == (
        "20 % of the change is lost    2 layers, rank 2 to 5, 4 on average"
        "    not drawn: 1 norms and biases"
    )
    assert title(layers(3)) == "10 % of the change is lost    3 layers, rank 8"


@pytest.mark.parametrize("theme", LOOKS)
@pytest.mark.parametrize("num", [1, 280, 2000])
def test_any_number_of_layers_fills_the_width(num: int, theme: str) -> None:
    picture, look = draw_layers(layers(num), theme=theme), LOOKS[theme]
    assert (picture.size, picture.mode) == ((960, 540), "RGB")
    assert num_pixels(picture, look.background) > 0
    for colour in (look.smooth, look.validation):
        height, width = spread(picture, colour)
        assert width == pytest.approx(960 * 0.892, abs=2)
        assert height > 150


def test_a_column_is_as_high_as_its_layer_says() -> None:
    kept = [*layers(2, rank=20, lost=0.1), *layers(2, rank=5, lost=0.025)]
    picture = draw_layers(kept)
    for colour in (DARK.smooth, DARK.validation):
        heights = columns(picture, colour)[85:940]
        assert np.median(heights[:400]) == pytest.approx(4 * np.median(heights[-400:]), abs=4)


def test_layers_stand_in_the_order_that_they_have() -> None:
    kept = [*layers(99, rank=1), Kept("lora_unet_up_blocks_0", 50, 1.0, 0.5)]
    heights = columns(draw_layers(kept), DARK.smooth)
    assert heights[936] > 20 * heights[500] > 0


def test_layers_that_lose_nothing_and_no_layers_at_all_are_drawn() -> None:
    picture = draw_layers(layers(10, lost=0.0))
    assert num_pixels(picture, DARK.validation) == 0
    assert draw_layers([]).size == (960, 540)


def test_names_below_are_of_parts_that_have_the_room() -> None:
    below = (slice(505, 530), slice(84, 940))
    wide, narrow = (
        layers(50),
        [Kept(f"lora_unet_{word}_1", 8, 1.0, 0.1) for word in "abcdefgh" * 30],
    )
    assert np.ptp(np.asarray(draw_layers(wide))[below]) > 50
    assert np.ptp(np.asarray(draw_layers(narrow))[below]) < 20
