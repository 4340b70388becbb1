"""A learned token in a real ComfyUI: socket, file and node must be the same to the bit."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from PIL import Image

from tests.graphs import Graph, Link, as_new
from tests.host import Host, HostError


@pytest.fixture(params=["host", "old_host"])
def any_host(request: pytest.FixtureRequest) -> Host:
    """Every supported ComfyUI in turn."""
    return request.getfixturevalue(request.param)


def pictures(host: Host) -> str:
    folder = host.base / "input" / "thing"
    if not folder.exists():
        folder.mkdir()
        for number, colour in enumerate(("red", "teal")):
            Image.new("RGB", (64, 64), colour).save(folder / f"{number}.png")
    return folder.name


def found(entry: dict[str, Any]) -> list[dict[str, Any]]:
    """What each probe of a prompt measured, in the order in which they were added."""
    outputs = sorted(entry["outputs"].items(), key=lambda item: int(item[0]))
    return [json.loads(output["found"][0]) for _, output in outputs if "found" in output]


def learned(host: Host, **settings: Any) -> tuple[Graph, list[Link], list[Link]]:
    """A graph with a training in it; MODEL, CLIP, VAE of the base; outputs of the training."""
    graph = Graph()
    base = graph.load()
    dataset = graph.dataset(pictures(host), "a photo of a dog")
    return graph, base, graph.invert(*base, dataset, **settings)


def encode(graph: Graph, clip: Link, text: str) -> Link:
    return graph.add("CLIPTextEncode", clip=clip, text=text)[0]


def compare(graph: Graph, first: tuple[Link, str], second: tuple[Link, str]) -> None:
    ours, theirs = (encode(graph, clip, text) for clip, text in (first, second))
    graph.add("ProbeSame", first=ours, second=theirs)


def saved(host: Host, prefix: str, **settings: Any) -> Path:
    """Train and save; the file that was written."""
    graph, _, outputs = learned(host, **settings)
    graph.add("PersonalizeSaveEmbedding", embedding=outputs[1], filename_prefix=prefix)
    host.run(graph)
    name = Path(prefix).name.replace("%token%", "sks")
    return max((host.base / "output" / "embeddings").glob(f"{name}_*.safetensors"))


LONG = "red green blue " * 30
PAIRS = [
    ("a photo of <sks> here", "a photo of embedding:NAME here"),
    ("a <SKS>, on a beach", "a embedding:NAME , on a beach"),
    ("(a <sks>:1.3) and (<sks>) [x]", "(a embedding:NAME :1.3) and (embedding:NAME ) [x]"),
    (f"{LONG}<sks> {LONG}<sks>", f"{LONG}embedding:NAME {LONG}embedding:NAME"),
    ("a embedding:<sks>, red", "a embedding:NAME, red"),
]


@pytest.mark.parametrize("vectors", [1, 9])
def test_socket_file_and_apply_node_encode_alike_to_the_bit(any_host: Host, vectors: int) -> None:
    host = any_host
    name = saved(host, "embeddings/%token%", vectors=vectors).name.removesuffix(".safetensors")
    assert name.startswith("sks_")
    graph, base, outputs = learned(host, vectors=vectors)
    applied = graph.add("PersonalizeApplyEmbedding", clip=base[1], embedding=outputs[1])[0]
    for ours, file in PAIRS:
        for clip in (outputs[0], applied):
            compare(graph, (clip, ours), (base[1], file.replace("NAME", name)))
    compare(graph, (outputs[0], "a photo of <sks>"), (base[1], "a photo of <sks>"))
    compare(graph, (outputs[0], "a photo of a dog"), (base[1], "a photo of a dog"))
    measured = found(host.run(graph))
    assert len(measured) == 2 * len(PAIRS) + 2
    assert [m for m in measured[:-2] if not m["equal"]] == []
    assert measured[-2]["difference"] > 1e-3
    assert measured[-1]["equal"]


def test_token_survives_lora_loader_clip_skip_and_clone(any_host: Host) -> None:
    host = any_host
    name = saved(host, "embeddings/kept").stem
    graph = Graph()
    model, clip, vae = graph.load()
    lora = graph.train(
        model, clip, vae, graph.dataset(pictures(host)), train_text_encoder=True,
        text_encoder_learning_rate=1e-3,
    )[2]  # fmt: skip
    graph.add("PersonalizeSaveLora", lora=lora, filename_prefix="loras/ti", format="kohya fp32")
    host.run(graph)
    file = max((host.base / "output" / "loras").glob("ti_*.safetensors")).name

    graph, base, outputs = learned(host)
    ends = []
    for clip in (outputs[0], base[1]):
        loaded = graph.add(
            "LoraLoader", 2, model=base[0], clip=clip, lora_name=file, strength_model=1.0,
            strength_clip=0.7,
        )  # fmt: skip
        ends.append(graph.add("CLIPSetLastLayer", clip=loaded[1], stop_at_clip_layer=-2)[0])
    compare(graph, (ends[0], "a (<sks>:1.2)"), (ends[1], f"a (embedding:{name} :1.2)"))
    (measured,) = found(host.run(graph))
    assert measured["equal"]


def test_two_tokens_in_one_clip_and_the_later_one_of_a_name_counts(host: Host) -> None:
    graph, base, first = learned(host)
    second = graph.invert(
        base[0], first[0], base[2], graph.dataset(pictures(host), "a <sks>"), token="blob", seed=9
    )
    compare(graph, (second[0], "a <sks>"), (first[0], "a <sks>"))
    alone = graph.add("PersonalizeApplyEmbedding", clip=base[1], embedding=second[1])[0]
    compare(graph, (second[0], "a Blob"), (alone, "a blob"))
    again = graph.invert(base[0], first[0], base[2], graph.dataset(pictures(host)), seed=1)
    alone = graph.add("PersonalizeApplyEmbedding", clip=base[1], embedding=again[1])[0]
    compare(graph, (again[0], "a <sks>"), (alone, "a <sks>"))
    compare(graph, (again[0], "a <sks>"), (first[0], "a <sks>"))
    measured = found(host.run(graph))
    assert [m["equal"] for m in measured] == [True, True, True, False]


def test_file_says_what_it_is(host: Host) -> None:
    path = saved(host, "embeddings/facts")
    assert path.stat().st_size < 100_000
    with safetensors.safe_open(path, "pt") as file:
        assert list(file.keys()) == ["emb_params"]
        rows = file.get_tensor("emb_params")
        assert file.metadata()["personalize.token"] == "<sks>"
    assert (tuple(rows.shape), rows.dtype) == ((3, 768), torch.float32)


def test_base_samples_the_same_after_a_training(host: Host) -> None:
    taken = []
    for seed in (1, 2):
        graph, base, outputs = learned(host, seed=seed)
        graph.sample(base[0], base[1], "ti_base", as_new("a photo of sks dog"))
        graph.sample(base[0], outputs[0], "ti_token", "a photo of <sks>")
        host.run(graph)
        folder = host.base / "output"
        taken.append([max(folder.glob(f"{name}_*.latent")) for name in ("ti_base", "ti_token")])
    (before, first), (after, second) = taken
    assert torch.equal(latent(before), latent(after))
    assert not torch.equal(latent(first), latent(second))


def latent(path: Path) -> torch.Tensor:
    return safetensors.torch.load_file(path)["latent_tensor"]


def test_training_encodes_the_token_as_the_host_does(fp32_host: Host) -> None:
    host = fp32_host
    graph, base, outputs = learned(host)
    for text in ("a photo of <sks> here", "(<SKS>) and <sks>, 1.5"):
        literal = text.replace("(", r"\(").replace(")", r"\)")
        graph.add(
            "ProbePrediction", model=base[0], clip=outputs[0], text=text,
            conditioning=encode(graph, outputs[0], literal),
        )  # fmt: skip
    for measured in found(host.run(graph)):
        assert measured["text"] < 1e-5
        assert measured["prediction"] < 1e-5


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"token": "my dog"}, "one word of letters, digits"),
        ({"initializer": "qwzxjv"}, "has no word that clip_l knows"),
        ({"templates": "captions only"}, "in none of the captions"),
        ({"vectors": 33}, "vectors"),
    ],
)
def test_bad_settings_are_named(host: Host, settings: dict[str, Any], words: str) -> None:
    graph, *_ = learned(host, **settings)
    with pytest.raises(HostError, match=words):
        host.run(graph)


def test_token_that_is_a_word_is_warned_of(host: Host) -> None:
    graph, *_ = learned(host, token="dog", steps=1)
    before = len(host.log())
    host.run(graph)
    assert "the token 'dog' is a word of clip_l already" in host.log()[before:]


def test_embedding_of_another_model_is_refused(host: Host) -> None:
    graph, _, outputs = learned(host, steps=1)
    _, clip, _ = graph.load("thin_sdxl.safetensors")
    applied = graph.add("PersonalizeApplyEmbedding", clip=clip, embedding=outputs[1])[0]
    graph.add("PreviewAny", source=encode(graph, applied, "a"))
    with pytest.raises(HostError, match=r"is for clip_l \(768 wide\), but input 'clip' has"):
        host.run(graph)


def test_saved_file_is_offered_without_a_restart(host: Host) -> None:
    name = saved(host, "embeddings/offered").stem
    with urllib.request.urlopen(f"{host.url}/embeddings") as reply:
        assert name in json.load(reply)


# -- a LoRA whose captions have the token -------------------------------------------------


def lora_with_token(host: Host, **settings: Any) -> tuple[Graph, list[Link], list[Link]]:
    """A graph; outputs of Train Textual Inversion, and of Train LoRA behind it."""
    graph, base, token = learned(host)
    dataset = graph.dataset(pictures(host), "a photo of <sks>")
    return graph, token, graph.train(base[0], token[0], base[2], dataset, **settings)


def save_lora(graph: Graph, lora: Link, name: str, **options: Any) -> None:
    graph.add(
        "PersonalizeSaveLora", lora=lora, filename_prefix=f"loras/{name}", format="kohya fp32",
        **options,
    )  # fmt: skip


def lora_file(host: Host, name: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    path = max((host.base / "output" / "loras").glob(f"{name}_*.safetensors"))
    with safetensors.safe_open(path, "pt") as file:
        return safetensors.torch.load_file(path), file.metadata()


def test_lora_file_says_which_token_it_needs_and_can_carry_it(any_host: Host) -> None:
    host = any_host
    graph, token, lora = lora_with_token(host)
    save_lora(graph, lora[2], "needs")
    save_lora(graph, lora[2], "bundled", bundle_embedding=True)
    graph.add("PersonalizeSaveEmbedding", embedding=token[1], filename_prefix="embeddings/alone")
    compare(graph, (lora[1], "a <sks>"), (token[0], "a <sks>"))
    (measured,) = found(host.run(graph))
    assert measured["equal"]
    tensors, metadata = lora_file(host, "needs")
    assert not [key for key in tensors if "emb" in key]
    (needed,) = json.loads(metadata["personalize.embeddings"])
    assert (needed["token"], needed["vectors"]) == ("<sks>", 3)
    alone = max((host.base / "output" / "embeddings").glob("alone_*.safetensors"))
    rows = safetensors.torch.load_file(alone)["emb_params"]
    carried, _ = lora_file(host, "bundled")
    assert torch.equal(carried["bundle_emb.sks.string_to_param.*"], rows)


def test_lora_without_a_token_has_none_to_carry(host: Host) -> None:
    graph = Graph()
    base = graph.load()
    lora = graph.train(*base, graph.dataset(pictures(host)), steps=1)
    save_lora(graph, lora[2], "none", bundle_embedding=True)
    with pytest.raises(HostError, match="captions of this LoRA have: none"):
        host.run(graph)


def test_token_trains_further_with_the_lora(host: Host) -> None:
    graph, token, lora = lora_with_token(host, train_token=True, token_learning_rate=1e-2)
    save_lora(graph, lora[2], "pivotal", bundle_embedding=True)
    compare(graph, (lora[1], "a <sks>"), (token[0], "a <sks>"))
    (measured,) = found(host.run(graph))
    assert measured["difference"] > 1e-3
    carried, _ = lora_file(host, "pivotal")
    folder = host.base / "output" / "embeddings"
    rows = carried["bundle_emb.sks.string_to_param.*"]
    safetensors.torch.save_file({"emb_params": rows}, folder / "further.safetensors")
    graph, _, lora = lora_with_token(host, train_token=True, token_learning_rate=1e-2)
    _, clip, _ = graph.load()
    compare(graph, (lora[1], "a <sks>"), (clip, "a embedding:further"))
    (measured,) = found(host.run(graph))
    assert measured["equal"]


def test_token_to_train_further_must_be_there(host: Host) -> None:
    graph = Graph()
    base = graph.load()
    graph.train(*base, graph.dataset(pictures(host)), steps=1, train_token=True)
    with pytest.raises(HostError, match="the clip knows no learned token"):
        host.run(graph)
