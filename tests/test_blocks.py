"""Block weights: which block a weight lies in, and what a text gives each block."""

from __future__ import annotations

import pytest

from trainers.errors import AdapterError
from trainers.methods.adapters.blocks import Blocks

ATTENTION = "1.transformer_blocks.0.attn1.to_q.weight"


def unet(number: int, inner: tuple[int, ...], outer: tuple[int, ...]) -> list[str]:
    """Names as the host's UNet has them; attention in these of its input and output blocks."""
    names = ["time_embed.0.weight", "label_emb.0.0.weight", "input_blocks.0.0.weight"]
    names += [f"input_blocks.{i}.0.in_layers.2.weight" for i in range(1, number)]
    names += [f"input_blocks.{i}.{ATTENTION}" for i in inner]
    names += ["middle_block.0.in_layers.2.weight", f"middle_block.{ATTENTION}"]
    names += [f"output_blocks.{i}.0.in_layers.2.weight" for i in range(number)]
    names += [f"output_blocks.{i}.{ATTENTION}" for i in outer]
    return [*names, "out.2.weight"]


SD15 = Blocks(unet(12, (1, 2, 4, 5, 7, 8), tuple(range(3, 12))))
SDXL = Blocks(unet(9, (4, 5, 7, 8), tuple(range(6))))
FLUX = Blocks(
    ["img_in.weight", "time_in.in_layer.weight", "guidance.mlp.0.weight"]
    + [f"double_blocks.{i}.img_attn.qkv.weight" for i in range(19)]
    + [f"single_blocks.{i}.{part}" for i in range(38) for part in ("linear1.weight", "scale")]
    + ["final_layer.adaLN_modulation.1.weight"]
)
SHORT = "IN01 IN02 IN04 IN05 IN07 IN08 MID OUT03 OUT04 OUT05 OUT06 OUT07 OUT08 OUT09 OUT10 OUT11"
ONES = {"NONE": "", "INS": "BASE IN01 IN02 IN04", "IND": "BASE IN05 IN07 IN08"}
ONES["INALL"] = "BASE IN01 IN02 IN04 IN05 IN07 IN08"
ONES["MIDD"] = "BASE IN05 IN07 IN08 MID OUT03 OUT04 OUT05 OUT06"
ONES["OUTD"] = "BASE OUT03 OUT04 OUT05 OUT06"
ONES["OUTS"] = "BASE OUT07 OUT08 OUT09 OUT10 OUT11"
ONES["OUTALL"] = "BASE OUT03 OUT04 OUT05 OUT06 OUT07 OUT08 OUT09 OUT10 OUT11"


def ones(weights: dict[str, float]) -> str:
    assert set(weights.values()) <= {0.0, 1.0}
    return " ".join(name for name, weight in weights.items() if weight)


def test_lists_are_those_of_the_ecosystem() -> None:
    assert " ".join(SD15.short) == SHORT
    assert len(SD15.names) + 1 == 26
    assert " ".join(SDXL.short) == "IN04 IN05 IN07 IN08 MID OUT00 OUT01 OUT02 OUT03 OUT04 OUT05"
    assert len(SDXL.names) + 1 == 20
    assert SDXL.names[:2] == ("IN00", "IN01")
    assert SDXL.names[8:11] == ("IN08", "MID", "OUT00")
    assert len(FLUX.names) + 1 == 58
    assert FLUX.short == ()


@pytest.mark.parametrize(
    ("blocks", "weight", "block"),
    [
        (SD15, "input_blocks.4.1.proj_in.weight", "IN04"),
        (SD15, "input_blocks.0.0.bias", "IN00"),
        (SD15, "middle_block.2.out_layers.3.weight", "MID"),
        (SD15, "output_blocks.11.0.skip_connection.weight", "OUT11"),
        (SD15, "time_embed.2.weight", "BASE"),
        (SD15, "out.2.weight", "BASE"),
        (FLUX, "double_blocks.18.txt_mlp.0.weight", "double_blocks.18"),
        (FLUX, "single_blocks.7.scale", "single_blocks.7"),
        (FLUX, "guidance.mlp.0.weight", "BASE"),
        (FLUX, "final_layer.adaLN_modulation.1.weight", "BASE"),
    ],
)
def test_of_says_which_block_a_weight_lies_in(blocks: Blocks, weight: str, block: str) -> None:
    assert blocks.of(weight) == block


def test_numbers_go_to_blocks_in_order() -> None:
    short = SD15.weights(",".join(str(n / 10) for n in range(17)), "row")
    assert [short[name] for name in ("BASE", *SHORT.split())] == [n / 10 for n in range(17)]
    assert short["IN00"] == short["OUT02"] == 0
    full = SD15.weights(" ,".join(map(str, range(26))), "row")
    assert [full[name] for name in ("BASE", *SD15.names)] == list(range(26))
    xl = SDXL.weights("1,0,0,0,0,0,0.5,0,0,0,0,-2", "row")
    assert {name: weight for name, weight in xl.items() if weight} == {
        "BASE": 1.0, "OUT00": 0.5, "OUT05": -2.0,
    }  # fmt: skip
    flux = FLUX.weights(",".join(["1"] * 20 + ["0"] * 38), "row")
    assert flux["double_blocks.18"] == 1
    assert flux["single_blocks.0"] == 0


@pytest.mark.parametrize("word", ONES)
def test_presets_are_those_of_a1111(word: str) -> None:
    assert ones(SD15.weights(word.lower(), "row")) == ONES[word]


def test_presets_of_other_models() -> None:
    assert ones(SDXL.weights("MIDD", "row")) == "BASE IN07 IN08 MID OUT00 OUT01 OUT02"
    assert set(FLUX.weights("ALL", "row").values()) == {1.0}
    assert set(SD15.weights("ALL", "row").values()) == {1.0}


def test_names_leave_others_as_they_are_and_the_closest_counts() -> None:
    found = SD15.weights("out5 = 0.5, M00=0, OUT*=2", "row")
    assert (found["OUT05"], found["OUT06"], found["MID"], found["BASE"]) == (0.5, 2, 0, 1)
    found = FLUX.weights("*=0, single_blocks.*=0.5\nsingle_blocks.3=1, BASE=0.25", "row")
    wanted = {"BASE": 0.25, "double_blocks.0": 0, "single_blocks.2": 0.5, "single_blocks.3": 1}
    assert {name: found[name] for name in wanted} == wanted


@pytest.mark.parametrize(
    ("blocks", "text", "words"),
    [
        (
            SD15,
            "1,1,1",
            r"has 3 numbers; allowed for this model: 17 numbers \(BASE, IN01, IN02, IN04,",
        ),
        (SDXL, ",".join("1" * 17), r"12 numbers .*, 20 numbers \(BASE, IN00 to IN08, MID, OUT00"),
        (FLUX, ",".join("1" * 17), r"58 numbers \(BASE, double_blocks.0 to double_blocks.18, sing"),
        (FLUX, "INS", "has the entry 'INS'; .*or one of NONE, ALL"),
        (SD15, "INX", "has the entry 'INX'"),
        (SD15, "1,R,1", "has the entry 'R'"),
        (SD15, "nan", "has the entry 'nan'"),
        (SD15, "MID=0, IN12=1", "names 'IN12', which is none of its blocks"),
        (SD15, "MID=0, M00=1", "names 'M00', twice"),
        (SD15, "MID=0, 1", "has the entry '1'"),
        (SD15, "MID=inf", "has the entry 'inf'"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(blocks: Blocks, text: str, words: str) -> None:
    with pytest.raises(AdapterError, match=f"row: blocks .*{words}") as refused:
        blocks.weights(text, "row")
    assert str(refused.value).count("\n") == 1
