"""Measures recipes in real ComfyUIs, and keeps what came out.

A measurement trains through the pack's nodes, samples through stock ones, and scores the pictures.
It is kept in the work folder, so a stopped command goes on where it was.
"""

import dataclasses
import itertools
import json
import queue
import statistics
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from tests.graphs import Graph
from tests.host import Host

from . import meters, world
from .autoencoder import to_tensor
from .panel import (
    Scores,
    Shot,
    add_shots,
    of_group,
    pictures_of,
    score,
    second_shots,
    shots,
)
from .recipes import Recipe, folder_name, name_in_prompts, sockets


@dataclass(frozen=True)
class Task:
    """One measurement to make; the base is the same for every seed."""

    recipe: Recipe
    subject: str
    seed: int

    @property
    def key(self) -> str:
        return self.recipe.key(self.subject, self.seed)

    @property
    def shots(self) -> list[Shot]:
        called, second = self.recipe.called, self.recipe.second
        own = shots(self.subject, name_in_prompts(self.subject, called))
        if not second:
            return own
        return own + second_shots(second, name_in_prompts(second, called))


@dataclass(frozen=True)
class Result:
    """What a measurement came to: scores, the shots' pictures in order, how long it took.

    Attributes:
        told: what was said of a LoRA that was merged or extracted, and how large its file is.
    """

    task: Task
    scores: Scores
    pictures: tuple[Path, ...]
    seconds: float
    told: str = ""

    def levels(self, group: str) -> Tensor:
        """The pictures of one group of shots, bytes (B, 3, 64, 64)."""
        pictures = [Image.open(path).convert("RGB") for path in self.pictures]
        return to_tensor(of_group(pictures, self.task.shots, group))


class Laboratory:
    """A folder of measurements, and how new ones are made."""

    def __init__(self, work: Path, reader: meters.Reader) -> None:
        self.work, self.reader = work, reader
        self._preparing = threading.Lock()  # a host must not copy what another one's thread writes

    def prepare(self, host: Host) -> None:
        """Give a host, before or after its start, the subjects' pictures with their captions."""
        wanted = itertools.product(world.SUBJECTS, ("identifier", "class", "token"))
        with self._preparing:
            for name, called in wanted:
                folder = self.work / "subjects" / folder_name(name, called)
                world.write_subject(name, folder, name_in_prompts(name, called))
                host.add_input(folder, folder.name)

    def has(self, task: Task) -> bool:
        """Whether a measurement was made."""
        return (self.work / "results" / task.key / "scores.json").exists()

    def result(self, task: Task) -> Result:
        """A measurement that was made."""
        folder = self.work / "results" / task.key
        stored = json.loads((folder / "scores.json").read_text())
        pictures = tuple(sorted(folder.glob("*.png")))
        scores, told = Scores(**stored["scores"]), stored["told"]
        return Result(task, scores, pictures, stored["seconds"], told)

    def measure(self, host: Host, task: Task) -> Result:
        """Train, sample and score, unless that was done before."""
        folder = self.work / "results" / task.key
        if not self.has(task):
            graph = Graph()
            add_shots(graph, *sockets(graph, task.recipe, task.subject, task.seed), task.shots)
            started = time.monotonic()
            entry = host.run(graph, timeout=3600)
            pictures = pictures_of(host, entry, task.shots)
            seconds = time.monotonic() - started
            folder.mkdir(parents=True, exist_ok=True)
            for place, picture in enumerate(pictures):
                picture.save(folder / f"{place:03d}.png")
            scored = score(task.subject, self.reader, pictures, task.shots, task.recipe.second)
            scores, told = dataclasses.asdict(scored), told_of(graph, entry)
            content = json.dumps({"scores": scores, "seconds": seconds, "told": told})
            (folder / "scores.json").write_text(content)
            listed = "  ".join(f"{n} {v:.2f}" for n, v in scores.items() if v is not None)
            print(f"{task.recipe.label}, {task.subject} {task.seed}: {seconds:.0f} s  {listed}")
        return self.result(task)

    def measure_all(
        self, groups: Iterable[Iterable[Task]], make_host: Callable[[], Host], num: int
    ) -> None:
        """Measure with `num` hosts at once, each group of tasks in one host.

        Its cache then spares recipes that differ in sampling alone the training.
        """
        waiting: queue.SimpleQueue[Iterable[Task]] = queue.SimpleQueue()
        for group in groups:
            waiting.put(group)

        def work() -> None:
            with make_host() as host:
                self.prepare(host)
                while not waiting.empty():
                    for task in waiting.get():
                        self.measure(host, task)

        with ThreadPoolExecutor(num) as pool:
            for running in [pool.submit(work) for _ in range(num)]:
                running.result()


def told_of(graph: Graph, entry: dict[str, Any]) -> str:
    """What nodes hand out of a LoRA: a size and a report's first line, or how its loss fell."""
    shown = {
        node["class_type"]: entry["outputs"][node_id]["text"][0]
        for node_id, node in graph.items()
        if node["class_type"] in ("PreviewAny", "PersonalizeSaveLora")
    }
    if not shown:
        return ""
    if "PersonalizeSaveLora" not in shown:
        losses = json.loads(shown["PreviewAny"])["loss"]
        first, last = (statistics.fmean(part) for part in (losses[:50], losses[-50:]))
        return f"a loss of {first:.3f} in the first 50 steps, of {last:.3f} in the last 50"
    megabytes = Path(shown["PersonalizeSaveLora"]).stat().st_size / 1e6
    return f"{megabytes:.1f} MB in fp16; {shown['PreviewAny'].splitlines()[0]}"
