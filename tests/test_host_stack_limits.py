"""Rows of Adapter Stack that are for some blocks or a part of sampling, in a real ComfyUI."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from tests.graphs import Graph, Link
from tests.host import Host
from tests.test_host_lora import difference, latents, pictures
from tests.test_host_stack import (
    UNET,
    add_lora,
    any_host,  # noqa: F401  # a fixture
    load_lora,
    lora_tensors,
    refused,
    shown,
    text_of,
)
from trainers.methods.adapters.blocks import BASE, Blocks

STEPS = 6
INNER, OUTER = "IN*=1, *=0", "OUT*=0.5, BASE=1, *=0"


def row(item: Any, **values: Any) -> dict[str, Any]:
    return {"lora": item, **values}


def stack(graph: Graph, *rows: dict[str, Any], **sockets: Any) -> list[Link]:
    """MODEL, CLIP, LORA_STACK, triggers and HOOKS."""
    inputs = {f"{k}_{n}": v for n, one in enumerate(rows, start=1) for k, v in one.items()}
    return graph.add("PersonalizeAdapterStack", 5, **inputs, **sockets)


def sampled(host: Host, graph: Graph) -> dict[str, Any]:
    for node in graph.values():
        if node["class_type"] == "KSampler":
            node["inputs"]["steps"] = STEPS
    return host.run(graph)


def scheduled(
    graph: Graph, name: str, strengths: tuple[float, float], start: float, end: float
) -> Link:
    """The host's own hooks for a file that is in force from `start` to `end`."""
    before = [(0.0, 0.0)] if start > 0 else []
    behind = [(0.0, end)] if end < 1 else []
    frames: dict[str, Link] = {}
    for strength, percent in (*before, (1.0, start), *behind):
        made = graph.add(
            "CreateHookKeyframe", strength_mult=strength, start_percent=percent, **frames
        )
        frames = {"prev_hook_kf": made[0]}
    values = {"strength_model": strengths[0], "strength_clip": strengths[1]}
    hooks = graph.add("CreateHookLora", lora_name=name, **values)[0]
    return graph.add("SetHookKeyframes", hooks=hooks, hook_kf=frames["prev_hook_kf"])[0]


def with_hooks(graph: Graph, clip: Link, *hooks: Link) -> Link:
    inputs = {f"hooks_{letter}": one for letter, one in zip("ABCD", hooks, strict=False)}
    every = graph.add("CombineHooks4", **inputs)[0]
    flags = {"apply_to_conds": True, "schedule_clip": False}
    return graph.add("SetClipHooks", clip=clip, hooks=every, **flags)[0]


def parts(checkpoint: Path, seed: int) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """A LoRA, and what of it is in input blocks, the middle, output blocks, and no block."""
    tensors = lora_tensors(checkpoint, seed)
    weights = [k.removeprefix(UNET) for k in safetensors.torch.load_file(checkpoint) if UNET in k]
    blocks = Blocks(weights)
    by_name = {w.removesuffix(".weight").replace(".", "_"): blocks.of(w) for w in weights}
    found: dict[str, dict[str, Any]] = {"IN": {}, "MID": {}, "OUT": {}, BASE: {}}
    for key, tensor in tensors.items():
        block = by_name.get(key.removeprefix("lora_unet_").partition(".")[0], BASE)
        found[block.rstrip("0123456789")][key] = tensor
    assert all(found.values())
    return tensors, found


def test_blocks_are_the_layers_of_the_file(any_host: Host, checkpoint: Path) -> None:  # noqa: F811
    host, graph = any_host, Graph()
    tensors, by_block = parts(checkpoint, 21)
    whole = add_lora(host, tensors)
    files = {name: add_lora(host, found) for name, found in by_block.items()}
    base = graph.load()
    wired = {"model": base[0], "clip": base[1]}

    theirs = load_lora(graph, base, files["IN"], 0.8, 0.5)
    graph.sample(*theirs, "inner")
    ours = stack(graph, row(whole, strength_model=0.8, blocks=INNER), **wired)
    graph.sample(*ours[:2], "ours inner")

    theirs = load_lora(graph, base, files[BASE], 0.8, 0.5)
    theirs = load_lora(graph, theirs, files["OUT"], 0.4, 0.5)
    graph.sample(*theirs, "outer")
    strengths = {"strength_model": 0.8, "strength_clip": 0.5}
    ours = stack(graph, row(whole, **strengths, blocks=OUTER), **wired)
    graph.sample(*ours[:2], "ours outer")
    seen = shown(graph, ours[2])

    graph.sample(*load_lora(graph, base, whole, 0.8, 0.5), "whole")
    graph.sample(*stack(graph, row(whole, **strengths, blocks="ALL"), **wired)[:2], "all")
    graph.sample(*stack(graph, row(whole, **strengths, blocks="NONE"), **wired)[:2], "none")
    graph.sample(*base[:2], "base")
    entry = sampled(host, graph)

    assert torch.equal(latents(host, "ours inner"), latents(host, "inner"))
    assert torch.equal(latents(host, "ours outer"), latents(host, "outer"))
    assert torch.equal(latents(host, "all"), latents(host, "whole"))
    assert torch.equal(latents(host, "none"), latents(host, "base"))
    assert difference(latents(host, "inner"), latents(host, "outer")) > 1e-3
    assert text_of(entry, seen) == "[]"  # a stack of files has no place for block weights


def test_parts_of_sampling_are_the_hosts_hooks(any_host: Host, checkpoint: Path) -> None:  # noqa: F811
    host, graph = any_host, Graph()
    first, second, third = (add_lora(host, lora_tensors(checkpoint, seed)) for seed in (22, 23, 24))
    base = graph.load()

    steady = load_lora(graph, base, third, 0.7, 0.6)
    early = scheduled(graph, first, (1.0, 0.5), 0.0, 0.5)
    late = scheduled(graph, second, (-0.8, 1.0), 0.25, 1.0)
    middle = scheduled(graph, first, (0.5, 0.0), 0.6, 0.8)
    graph.sample(steady[0], with_hooks(graph, steady[1], early), "early")
    graph.sample(steady[0], with_hooks(graph, steady[1], early, late, middle), "theirs")
    graph.sample(*steady, "steady")

    rows = [
        row(first, strength_clip=0.5, end=0.5),
        row(third, strength_model=0.7, strength_clip=0.6),
        row(second, strength_model=-0.8, start=0.25),
        row(first, strength_model=0.5, strength_clip=0.0, start=0.6, end=0.8),
    ]
    wired = {"model": base[0], "clip": base[1]}
    ours = stack(graph, *rows[:2], **wired)
    graph.sample(*ours[:2], "ours early")
    ours = stack(graph, *rows, **wired)
    graph.sample(*ours[:2], "ours")
    seen = shown(graph, ours[2])
    # Stacks one behind the other, and hooks that go another way: the same.
    chained = stack(graph, *rows[:2], **wired)
    chained = stack(graph, *rows[2:], model=chained[0], clip=chained[1])
    graph.sample(*chained[:2], "chained")
    graph.sample(ours[0], with_hooks(graph, steady[1], ours[4]), "by hooks")
    entry = sampled(host, graph)

    assert torch.equal(latents(host, "ours early"), latents(host, "early"))
    assert torch.equal(latents(host, "ours"), latents(host, "theirs"))
    assert torch.equal(latents(host, "chained"), latents(host, "theirs"))
    assert torch.equal(latents(host, "by hooks"), latents(host, "theirs"))
    for other in ("early", "steady"):
        assert difference(latents(host, "ours"), latents(host, other)) > 1e-3
    assert json.loads(text_of(entry, seen)) == [[third, 0.7, 0.6]]


def test_blocks_and_a_part_of_sampling_go_together(
    any_host: Host,  # noqa: F811
    checkpoint: Path,
) -> None:
    host, graph = any_host, Graph()
    tensors, by_block = parts(checkpoint, 25)
    whole = add_lora(host, tensors)
    files = {name: add_lora(host, found) for name, found in by_block.items()}
    base = graph.load()
    theirs = [
        scheduled(graph, files[BASE], (0.8, 0.5), 0.3, 0.7),
        scheduled(graph, files["OUT"], (0.4, 0.0), 0.3, 0.7),
    ]
    graph.sample(base[0], with_hooks(graph, base[1], *theirs), "theirs")
    limits = {"start": 0.3, "end": 0.7, "blocks": OUTER}
    one = row(whole, strength_model=0.8, strength_clip=0.5, **limits)
    ours = stack(graph, one, model=base[0], clip=base[1])
    graph.sample(*ours[:2], "ours")
    graph.sample(*base[:2], "base")
    sampled(host, graph)
    assert torch.equal(latents(host, "ours"), latents(host, "theirs"))
    assert difference(latents(host, "ours"), latents(host, "base")) > 1e-3


def test_hooks_that_a_prompt_has_already_do_not_count_twice(host: Host, checkpoint: Path) -> None:
    graph, name = Graph(), add_lora(host, lora_tensors(checkpoint, 27))
    base = graph.load()
    ours = stack(graph, row(name, start=0.3), model=base[0], clip=base[1])
    graph.sample(*ours[:2], "once")
    sampler = next(node for node in graph.values() if node["class_type"] == "KSampler")
    values = {"strength": 1.0, "set_cond_area": "default", "hooks": ours[4]}
    twice = {
        side: graph.add("ConditioningSetProperties", cond_NEW=sampler["inputs"][side], **values)[0]
        for side in ("positive", "negative")
    }
    latent = graph.add("KSampler", **{**sampler["inputs"], **twice})[0]
    graph.add("SaveLatent", samples=latent, filename_prefix="twice")
    graph.sample(*base[:2], "base")
    sampled(host, graph)
    assert difference(latents(host, "twice"), latents(host, "once")) < 1e-5
    assert difference(latents(host, "once"), latents(host, "base")) > 1e-3


@pytest.mark.parametrize(
    ("values", "wired", "words"),
    [
        ({"blocks": "1,1,1"}, "model clip", r"lora_1: '.*': blocks has 3 numbers; allowed for "),
        ({"blocks": "IN77=1"}, "model clip", "names 'IN77', which is none of its blocks; allowed"),
        ({"blocks": "ALL"}, "clip", "is for a part of the blocks, and input 'model' has nothing"),
        ({"start": 0.5}, "model", "is for a part of sampling, and input 'clip' has nothing; all"),
        ({"end": 0.5}, "clip", "is for a part of sampling, and input 'model' has nothing; all"),
        ({"start": 0.5, "end": 0.5}, "model clip", "start 0.5 and end 0.5; allowed: from 0 to 1"),
    ],
)
def test_limits_that_cannot_be_are_refused(
    host: Host, checkpoint: Path, values: dict[str, Any], wired: str, words: str
) -> None:
    graph, name = Graph(), add_lora(host, lora_tensors(checkpoint, 26))
    base = dict(zip(("model", "clip"), graph.load(), strict=False))
    ours = stack(graph, row(name, **values), **{socket: base[socket] for socket in wired.split()})
    both = (
        link if socket in wired else base[socket] for socket, link in zip(base, ours, strict=False)
    )
    graph.sample(*both, "refused")
    refused(host, graph, words)


def test_learned_tokens_have_no_limits(host: Host) -> None:
    for limit in ({"blocks": "ALL"}, {"end": 0.5}):
        graph = Graph()
        base = graph.load()
        embedding = graph.invert(*base, graph.dataset(pictures(host)), steps=1)[1]
        ours = stack(graph, row(embedding, **limit), model=base[0], clip=base[1])
        graph.sample(*ours[:2], "refused")
        refused(host, graph, "lora_1: the token '<sks>' has blocks, start or end; allowed: none")
