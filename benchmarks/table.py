"""One table: models by settings, seconds a step and memory, ours beside others'; into the docs.

    python -m benchmarks.table [--comfyui DIR] [--only PART ...] [--models MODEL ...] [--rounds N]
                               [--diffusers DIR] [--kohya DIR] [--report FILE]

A LoRA of rank 16 on the attention layers, one picture. Parts, which `--only` chooses from:

- plans: memory and operations of a step of the model in full size, in bf16, on fake tensors
  (memory_plan.py). SD1.5 at 512 px, all others at 1024.
- steps: what a step takes on this CPU, all settings in turn in one process (settings_cost.py):
  SD1.5 and SDXL in full size, small transformers. CPU seconds of one thread.
- peaks: what SD1.5's and SDXL's add to what is resident, each setting in a process of its own.
- programs: Train LoRA in a real ComfyUI beside diffusers' and kohya's scripts on SD1.5 in full
  size, in turn, each in a process of its own (lora_step.py --shared). Scripts need a checkout.

What was found is kept in .dev/table.json, row by row, with its day, so that parts may be measured
at different times; the table is written of all that is there, between two marks in
docs/performance.md. What others published stands beside it. Perhaps an hour on two cores without
other work; 2 GB of memory for plans and small models, 16 GB for the rest.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

import dev
from benchmarks.gpu_cases import DIFFUSERS, KOHYA, SCRIPTS
from benchmarks.lora_step import CONTENDERS, scripts_of
from benchmarks.memory_plan import ALL, QUANTIZED, RAM, SMALL_PX, Case, planned, use_host
from benchmarks.running import MODELS, WARM_UP_STEPS, add_comfyui, bench_of, checked
from benchmarks.settings_cost import CASES, SIZE_PX, apart, costs, peak
from tests.host import ROOT, HostError

PAGE = ROOT / "docs" / "performance.md"
KEPT = dev.DEV / "table.json"
BEGIN, END = "<!-- written by benchmarks/table.py -->", "<!-- to here -->"
PARTS = STEPS, PEAKS, PLANS, PROGRAMS = ("steps", "peaks", "plans", "programs")
SETTINGS: Mapping[str, Mapping[str, Any]] = {  # as settings_cost names them
    "none": {"checkpointing": "none"}, "all": ALL, "all, int8": QUANTIZED, "RAM": RAM,
}  # fmt: skip
SAID = {
    "none": "no checkpointing",
    "all": "checkpointing all",
    "all, int8": "and quantize_base int8",
    "RAM": "weights_in RAM",
}
NAMES = {
    "sd15": "SD1.5", "sdxl": "SDXL", "z-image": "Z-Image", "klein-4b": "FLUX.2 klein 4B",
    "klein-9b": "FLUX.2 klein 9B", "qwen-image": "Qwen-Image", "krea2": "Krea 2",
    "chroma": "Chroma", "sd3.5-large": "SD3.5 Large", "flux1": "FLUX.1",
}  # fmt: skip


class Published(NamedTuple):
    """What others tell: by whom, seconds a step if they say so, and GB."""

    by: str
    seconds: float | None
    gb: str

    def __str__(self) -> str:
        seconds = "" if self.seconds is None else f"{self.seconds:.3g} s, "
        return f"{self.by}: {seconds}{self.gb} GB"


def _h100(seconds: float | None, gb: float) -> Published:
    """SimpleTuner's pages, October 2026: on an H100, batch size 1, at the sizes of the plans."""
    return Published("SimpleTuner", seconds, f"{gb:.1f}")


# Its "by layer" stands with checkpointing all, its int8 with that quantized. musubi-tuner's and
# sd-scripts' documentation (flux_train_network.md) tell memory and no card.
PUBLISHED: Mapping[tuple[str, str], Sequence[Published]] = {
    ("sd15", "none"): [_h100(0.181, 2.9)],
    ("sd15", "all"): [_h100(0.305, 2.0)],
    ("sdxl", "none"): [_h100(0.606, 13.0)],
    ("sdxl", "all"): [_h100(1.08, 6.5)],
    ("z-image", "none"): [_h100(0.243, 21.3)],
    ("z-image", "all"): [_h100(0.479, 12.9)],
    ("z-image", "all, int8"): [_h100(1.05, 7.3)],
    ("krea2", "none"): [_h100(0.990, 33.3)],
    ("krea2", "all, int8"): [_h100(1.33, 20.4)],
    ("chroma", "none"): [_h100(0.454, 26.2)],
    ("chroma", "all"): [_h100(1.28, 17.7)],
    ("chroma", "all, int8"): [_h100(1.71, 10.4)],
    ("qwen-image", "all"): [_h100(1.20, 41.0), Published("musubi", None, "42")],
    ("qwen-image", "all, int8"): [_h100(2.64, 24.1), Published("musubi, fp8", None, "30")],
    ("qwen-image", "RAM"): [Published("musubi, fp8, 16 or 45 blocks swapped", None, "24 or 12")],
    ("flux1", "RAM"): [Published("sd-scripts, fp8, 16, 22, 28 blocks swapped", None, "12, 10, 8")],
}


# -- what is kept ---------------------------------------------------------------

Kept = dict[str, dict[str, dict[str, Any]]]  # by part, and model and setting, or program


def read() -> Kept:
    kept: Kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    return {part: kept.get(part, {}) for part in PARTS}


def keep(part: str, name: str, **found: Any) -> None:
    """Note a row, whatever comes after it."""
    kept = read()
    kept[part][name] = {**found, "day": datetime.date.today().isoformat()}
    KEPT.parent.mkdir(parents=True, exist_ok=True)
    KEPT.write_text(json.dumps(kept, indent=1))
    print(f"  {part:10}{name:28}{found}", flush=True)


def key(model: str, setting: str) -> str:
    return f"{model}: {setting}"


# -- measuring --------------------------------------------------------------------


def plans(asked: argparse.Namespace) -> None:
    use_host(asked.comfyui)
    for model in filter(asked.models.__contains__, NAMES):
        for setting, settings in SETTINGS.items():
            found = planned(Case(model, "lora", settings))
            keep(PLANS, key(model, setting), peak=found.peak, flops=found.flops)


def steps(asked: argparse.Namespace) -> None:
    use_host(asked.comfyui)
    for model in filter(asked.models.__contains__, CASES):
        found, same = apart(costs, model, list(SETTINGS), asked.rounds)
        if not same:
            raise SystemExit(f"{model}: weights in RAM change the loss")
        for setting, cost in found.items():
            keep(STEPS, key(model, setting), **cost._asdict(), load=load())


def peaks(asked: argparse.Namespace) -> None:
    use_host(asked.comfyui)
    for model in filter(asked.models.__contains__, MODELS):  # a small one's memory says nothing
        for setting in SETTINGS:
            keep(PEAKS, key(model, setting), peak=apart(peak, model, setting))


def programs(asked: argparse.Namespace) -> None:
    asked.shared, asked.quick = True, False
    asked.steps = WARM_UP_STEPS + asked.rounds
    ours = [c for c in CONTENDERS if c.precision == "fp32" and c.kind == "ours"]
    scripts = scripts_of({kind: getattr(asked, kind) for kind in SCRIPTS})
    with bench_of(asked, MODELS["sd15"]) as bench:
        for contender in (*ours, *scripts):
            try:
                sample = contender.run(bench)
            except HostError as error:  # the others' rows are not lost with it
                print(f"  {contender.title} FAILED\n{error}", flush=True)
                continue
            seconds, peak = statistics.median(sample.seconds), max(sample.peaks_bytes)
            keep(PROGRAMS, contender.kind, seconds=seconds, peak=peak, load=load())


def load() -> float:
    return round(os.getloadavg()[1], 1)


# -- the table ----------------------------------------------------------------------


PROGRAMS_SAID = {
    "ours": "Train LoRA in ComfyUI", DIFFUSERS: "diffusers' train_dreambooth_lora.py",
    KOHYA: "kohya's train_network.py",
}  # fmt: skip
HEAD = """
| model | settings | px | GB by plan | 10^12 operations | CPU: of what | s/step | x | peak GB \
| published |
|---|---|---|---|---|---|---|---|---|---|
"""


def table(kept: Kept) -> str:
    """All that is kept, by models and settings, in markdown."""
    lines = [
        model_line(kept, model, setting)
        for model in NAMES
        for setting in SETTINGS
        if (model, setting) in PUBLISHED
        or any(key(model, setting) in kept[part] for part in (PLANS, STEPS))
    ]
    if "ours" in kept[PROGRAMS]:
        lines += [program_line(kept, kind) for kind in PROGRAMS_SAID if kind in kept[PROGRAMS]]
    return HEAD.lstrip("\n") + "\n".join(lines)


def model_line(kept: Kept, model: str, setting: str) -> str:
    plan, cost, most = (kept[part].get(key(model, setting)) for part in (PLANS, STEPS, PEAKS))
    cells = [NAMES[model], SAID[setting], str(SMALL_PX.get(model, 1024))]
    cells += [f"{plan['peak'] / 1e9:.2f}", tera(plan["flops"])] if plan else ["", ""]
    cells.append(of_what(model) if cost or most else "")
    cells += [f"{cost['seconds']:.2f}", f"{cost['ratio']:.2f}"] if cost else ["", ""]
    cells.append(f"{most['peak'] / 1e9:.2f}" if most else "")
    cells.append("; ".join(map(str, PUBLISHED.get((model, setting), ()))))
    return f"| {' | '.join(cells)} |"


def tera(flops: int) -> str:
    return f"{flops / 1e12:.1f}" if flops else ""  # a plan by memory_plan tells memory alone


def of_what(model: str) -> str:
    """What of a model the CPU trained."""
    title = CASES[model].title
    return f"{SIZE_PX} px" if title == NAMES[model] else f"{SIZE_PX} px, {title}"


def program_line(kept: Kept, kind: str) -> str:
    found, ours = kept[PROGRAMS][kind], kept[PROGRAMS]["ours"]
    cells = [NAMES["sd15"], PROGRAMS_SAID[kind], "", "", "", f"{SIZE_PX} px, the whole program"]
    cells += [f"{found['seconds']:.2f}", f"{found['seconds'] / ours['seconds']:.2f}"]
    return f"| {' | '.join(cells)} | {found['peak'] / 1e9:.2f} | |"


def conditions(kept: Kept) -> str:
    """When and on what the rows were measured."""
    rows = [row for part in PARTS for row in kept[part].values()]
    days = sorted({row["day"] for row in rows})
    loads = [row["load"] for row in rows if "load" in row]
    told = f"{' to '.join(dict.fromkeys((days[0], days[-1])))}; {machine()}"
    versions = {"torch": torch.__version__, "ComfyUI": dev.NEWEST}
    told += "".join(f"; {name} {version}" for name, version in versions.items())
    if loads:
        told += f"; the load while steps were measured: {min(loads):g} to {max(loads):g}"
    return f"{told}."


def machine() -> str:
    """The CPU, as Linux tells it."""
    told = Path("/proc/cpuinfo").read_text()
    (name,) = set(re.findall(r"^model name\s*: (.*)$", told, re.MULTILINE)) or {"a CPU"}
    widest = next((kind for kind in ("avx512_bf16", "avx512f", "avx2") if kind in told), "no AVX2")
    return f"{os.cpu_count()} cores of an {name} with {widest}"


def write(page: Path, text: str) -> None:
    """Puts the text between the marks.

    Raises:
        SystemExit: the page has no marks.
    """
    before, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{page} has no place for the table: {BEGIN} and {END}")
    page.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")
    print(f"Written to {page}.")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add_comfyui(parser)
    parser.add_argument("--only", nargs="*", choices=PARTS, default=PARTS, help="none: write it")
    parser.add_argument("--models", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--rounds", type=int, default=5, help="steps that count")
    parser.add_argument("--report", type=Path, default=PAGE, help="where it is written")
    for kind in SCRIPTS:
        parser.add_argument(f"--{kind}", type=Path, metavar="DIR", help="a checkout of its scripts")
    asked = checked(parser)
    ways: dict[str, Callable[[argparse.Namespace], None]] = {
        STEPS: steps, PEAKS: peaks, PLANS: plans, PROGRAMS: programs,
    }  # fmt: skip
    for (
        part,
        measured,
    ) in ways.items():  # the first ones fork, from a process that has trained nothing
        if part in asked.only:
            measured(asked)
    kept = read()
    write(asked.report, f"{conditions(kept)}\n\n{table(kept)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
