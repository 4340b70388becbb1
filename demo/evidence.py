"""Measures recipes in real ComfyUIs, and keeps what came out.

A measurement trains through the pack's nodes, samples through stock ones, and scores the pictures.
It is kept in the work folder, so a stopped command goes on where it was.
"""

import dataclasses
import itertools
import json
import queue
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torch import Tensor

from tests.graphs import Graph
from tests.host import Host

from . import meters, world
from .autoencoder import to_tensor
from .panel import Scores, Shot, add_shots, of_group, run_shots, score, shots
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
        return shots(self.subject, name_in_prompts(self.subject, self.recipe.called))


@dataclass(frozen=True)
class Result:
    """What a measurement came to: scores, the shots' pictures in order, how long it took."""

    task: Task
    scores: Scores
    pictures: tuple[Path, ...]
    seconds: float

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
        return Result(task, Scores(**stored["scores"]), pictures, stored["seconds"])

    def measure(self, host: Host, task: Task) -> Result:
        """Train, sample and score, unless that was done before."""
        folder = self.work / "results" / task.key
        if not self.has(task):
            graph = Graph()
            add_shots(graph, *sockets(graph, task.recipe, task.subject, task.seed), task.shots)
            started = time.monotonic()
            pictures = run_shots(host, graph, task.shots)
            seconds = time.monotonic() - started
            folder.mkdir(parents=True, exist_ok=True)
            for place, picture in enumerate(pictures):
                picture.save(folder / f"{place:03d}.png")
            scores = dataclasses.asdict(score(task.subject, self.reader, pictures, task.shots))
            content = json.dumps({"scores": scores, "seconds": seconds})
            (folder / "scores.json").write_text(content)
            told = "  ".join(f"{name} {value:.2f}" for name, value in scores.items())
            print(f"{task.recipe.label}, {task.subject} {task.seed}: {seconds:.0f} s  {told}")
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
