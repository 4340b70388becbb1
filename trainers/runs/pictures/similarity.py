"""How like the subject samples are, and how well they follow their prompts.

The measures of DreamBooth (arXiv 2208.12242, section 4.2), from the embeddings of other models:

    CLIP-I, DINO    the mean cosine of a sample with each real picture
    CLIP-T          the cosine of a sample with its prompt, both embedded by one CLIP

N is the number of real pictures, M of samples, D of the numbers in an embedding.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

CLIP_I, CLIP_T, DINO = "CLIP-I", "CLIP-T", "DINO"
GREY = 128 / 255  # in the place of what a mask leaves out; 8 bits hold it, so it stays one grey
INSIDE = 0.1  # of a mask's largest value: from there on a pixel belongs to the subject
REAL = "real pictures among themselves"


@dataclass(frozen=True)
class Metric:
    """What one measure says of each sample.

    Attributes:
        each: one number a sample, -1 to 1.
        real: the real pictures' own: the mean cosine of two different ones; None where there is
            no such number.
    """

    name: str
    each: tuple[float, ...]
    real: float | None = None

    def mean(self, samples: Sequence[int]) -> float:
        """The mean of some samples, by their places."""
        return sum(self.each[place] for place in samples) / len(samples)


@dataclass(frozen=True)
class Report:
    """Several measures of the same samples, row by row.

    Attributes:
        labels: what each row is called.
        rows: the places of each row's samples.
    """

    metrics: tuple[Metric, ...]
    labels: tuple[str, ...]
    rows: tuple[range, ...]

    def row_means(self, metric: Metric) -> list[float]:
        """What a measure says of each row."""
        return [metric.mean(row) for row in self.rows]

    def best(self, metric: Metric) -> int:
        """The row that a measure puts first; of equal ones the first."""
        means = self.row_means(metric)
        return means.index(max(means))

    def mean(self, name: str) -> float | None:
        """The mean over all samples; None if that was not measured."""
        found = (metric for metric in self.metrics if metric.name == name)
        return next((metric.mean(range(len(metric.each))) for metric in found), None)

    def best_line(self) -> str:
        """The best row of each measure, in a line."""
        said = [
            f"{metric.name} {self.row_means(metric)[row]:.3f} ({self.labels[row]})"
            for metric in self.metrics
            for row in [self.best(metric)]
        ]
        return f"{'best' if len(self.rows) > 1 else 'mean'}: {', '.join(said)}"

    def table(self) -> str:
        """All rows in columns of even width, the best of each marked, and the line of the best."""
        head = ["", *(metric.name for metric in self.metrics)]
        body = [[label, *self._numbers(row)] for row, label in enumerate(self.labels)]
        if len(self.rows) > 1:
            means = [metric.mean(range(len(metric.each))) for metric in self.metrics]
            body.append(["all", *(f"{mean:.4f}" for mean in means)])
        if any(metric.real is not None for metric in self.metrics):
            shown = (None if m.real is None else f"{m.real:.4f}" for m in self.metrics)
            body.append([REAL, *(text or "" for text in shown)])
        widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
        lines = [
            "  ".join([line[0].ljust(widths[0]), *map(str.ljust, line[1:], widths[1:])]).rstrip()
            for line in (head, *body)
        ]
        return "\n".join([*lines, self.best_line()])

    def _numbers(self, row: int) -> list[str]:
        is_one_of_several = len(self.rows) > 1
        return [
            f"{self.row_means(metric)[row]:.4f}"
            + ("*" if is_one_of_several and row == self.best(metric) else "")
            for metric in self.metrics
        ]

    def as_csv(self) -> str:
        """A line for each sample: its number, its row's label, and what each measure says."""
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["image", "row", *(metric.name for metric in self.metrics)])
        for label, row in zip(self.labels, self.rows, strict=True):
            for place in row:
                numbers = (f"{metric.each[place]:.6f}" for metric in self.metrics)
                writer.writerow([place + 1, label, *numbers])
        return file.getvalue()


def cosines(first: Tensor, second: Tensor) -> Tensor:
    """The cosine of each pair of (N, D) and (M, D), fp64 (N, M)."""
    unit = [torch.nn.functional.normalize(one.double(), dim=-1) for one in (first, second)]
    return unit[0] @ unit[1].T


def picture_metric(name: str, real: Tensor, samples: Tensor) -> Metric:
    """CLIP-I or DINO, by whose embeddings these are.

    Args:
        real: (N, D).
        samples: (M, D).
    """
    each = cosines(real, samples).mean(dim=0).tolist()
    if (num := len(real)) == 1:
        return Metric(name, tuple(each))
    among = cosines(real, real)
    return Metric(name, tuple(each), float((among.sum() - among.trace()) / (num * (num - 1))))


def text_metric(texts: Tensor, samples: Tensor) -> Metric:
    """CLIP-T.

    Args:
        texts: (M, D), the prompt of each sample.
        samples: (M, D).
    """
    each = torch.nn.functional.cosine_similarity(texts.double(), samples.double(), dim=-1)
    return Metric(CLIP_T, tuple(each.tolist()))


def subject_alone(pixels: Tensor, mask: Tensor) -> Tensor:
    """The subject in the middle of a grey square, as large as it was.

    Args:
        pixels: (H, W, 3) in 0..1.
        mask: (H, W) in 0..1, 1 on the subject, and not 0 all over.

    Returns:
        (S, S, 3), S being the longer side of the box around the subject.
    """
    alone = GREY + (pixels - GREY) * mask[:, :, None]
    inside = mask >= INSIDE * mask.max()
    (top, bottom), (left, right) = (_ends(inside.any(dim=side)) for side in (1, 0))
    cut = alone[top:bottom, left:right]
    height, width = cut.shape[:2]
    side = max(height, width)
    square = torch.full((side, side, 3), GREY, dtype=pixels.dtype, device=pixels.device)
    above, before = (side - height) // 2, (side - width) // 2
    square[above : above + height, before : before + width] = cut
    return square


def _ends(flags: Tensor) -> tuple[int, int]:
    """Where the first flag is, and one after the last."""
    places = flags.nonzero()
    return int(places[0]), int(places[-1]) + 1
