"""CLIP-I, CLIP-T and DINO from embeddings, rows and tables of them, without a host."""

from __future__ import annotations

import csv
import io
import math

import pytest
import torch

from trainers.errors import SettingsError
from trainers.runs.pictures.similarity import (
    CLIP_I,
    DINO,
    GREY,
    Metric,
    Report,
    cosines,
    picture_metric,
    subject_alone,
    text_metric,
)
from trainers.runs.pictures.similarity_plot import draw_report
from trainers.settings.preview import SimilarityConfig


def embeddings(num: int, seed: int, width: int = 6) -> torch.Tensor:
    return 3 * torch.randn(num, width, generator=torch.Generator().manual_seed(seed))


def cosine(first: torch.Tensor, second: torch.Tensor) -> float:
    """a b / (|a| |b|), number by number."""
    a, b = first.tolist(), second.tolist()
    dot = math.fsum(x * y for x, y in zip(a, b, strict=True))
    return dot / (math.hypot(*a) * math.hypot(*b))


def test_a_sample_is_as_like_as_its_mean_cosine_with_the_real_pictures() -> None:
    real, samples = embeddings(3, 0), embeddings(4, 1)
    metric = picture_metric(CLIP_I, real, samples)
    by_hand = [sum(cosine(r, s) for r in real) / 3 for s in samples]
    assert metric.each == pytest.approx(by_hand, abs=1e-12)
    assert metric.mean(range(4)) == pytest.approx(float(cosines(real, samples).mean()), abs=1e-12)
    pairs = [cosine(real[i], real[j]) for i in range(3) for j in range(3) if i != j]
    assert metric.real == pytest.approx(sum(pairs) / 6, abs=1e-12)


def test_one_real_picture_has_none_to_compare_with() -> None:
    assert picture_metric(DINO, embeddings(1, 0), embeddings(2, 1)).real is None


def test_a_prompt_is_compared_with_its_own_sample_alone() -> None:
    texts, samples = embeddings(3, 2), embeddings(3, 3)
    by_hand = [cosine(t, s) for t, s in zip(texts, samples, strict=True)]
    assert text_metric(texts, samples).each == pytest.approx(by_hand, abs=1e-12)
    assert text_metric(samples, 7 * samples).each == pytest.approx([1.0] * 3, abs=1e-12)


def report() -> Report:
    metrics = (
        Metric("CLIP-I", (0.5, 0.7, 0.8, 0.9), 0.875),
        Metric("CLIP-T", (0.31, 0.33, 0.2, 0.25)),
    )
    return Report(metrics, ("500 steps 0.5", "1,000 steps, $1"), (range(0, 2), range(2, 4)))


def test_each_row_has_its_mean_and_the_best_is_named() -> None:
    made = report()
    likeness, prompts = made.metrics
    assert made.row_means(likeness) == pytest.approx([0.6, 0.85])
    assert (made.best(likeness), made.best(prompts)) == (1, 0)
    assert made.mean("CLIP-I") == pytest.approx(0.725)
    assert made.mean("DINO") is None
    assert made.table().splitlines() == [
        "                                CLIP-I   CLIP-T",
        "500 steps 0.5                   0.6000   0.3200*",
        "1,000 steps, $1                 0.8500*  0.2250",
        "all                             0.7250   0.2725",
        "real pictures among themselves  0.8750",
        "best: CLIP-I 0.850 (1,000 steps, $1), CLIP-T 0.320 (500 steps 0.5)",
    ]
    rows = list(csv.reader(io.StringIO(made.as_csv())))
    assert rows[0] == ["image", "row", "CLIP-I", "CLIP-T"]
    assert rows[4] == ["4", "1,000 steps, $1", "0.900000", "0.250000"]


def test_the_chart_grows_with_its_rows() -> None:
    assert draw_report(report()).width == 960
    many = tuple(range(row, row + 1) for row in range(300))
    metric = Metric("DINO", tuple(row / 300 for row in range(300)), 0.5)
    tall = draw_report(Report((metric,), tuple(f"<b>{row}" for row in range(300)), many))
    assert tall.size == (960, 6096)


def test_the_subject_stands_alone_in_a_square() -> None:
    pixels = torch.rand(6, 9, 3, generator=torch.Generator().manual_seed(4))
    mask = torch.zeros(6, 9)
    mask[1:3, 2:6] = 1
    mask[1, 2] = 0.5
    alone = subject_alone(pixels, mask)
    assert alone.shape == (4, 4, 3)
    assert torch.equal(alone[[0, 3]], torch.full((2, 4, 3), GREY))
    assert torch.allclose(alone[1, 0], (pixels[1, 2] + GREY) / 2)
    assert torch.allclose(alone[1:3, 1:], pixels[1:3, 3:6])


def test_images_have_prompts_in_turn_and_rows_are_as_long() -> None:
    config = SimilarityConfig(prompts="a dog\n\n a cat ", row_labels="half\nfull")
    assert config.prompts_of(4) == ["a dog", "a cat", "a dog", "a cat"]
    assert config.rows(4) == (range(0, 2), range(2, 4))
    assert config.labels(2) == ("half", "full")
    alone = SimilarityConfig()
    assert alone.rows(3) == (range(0, 1), range(1, 2), range(2, 3))
    assert alone.labels(2) == ("1", "2")
    assert SimilarityConfig(prompts="a dog", images_per_row=4).rows(4) == (range(0, 4),)


def test_what_does_not_make_whole_rows_is_refused() -> None:
    config = SimilarityConfig(prompts="a\nb", row_labels="half\nfull")
    with pytest.raises(SettingsError, match="prompts has 2 lines for 3 images"):
        config.prompts_of(3)
    with pytest.raises(SettingsError, match="3 images are no whole rows of 2"):
        config.rows(3)
    with pytest.raises(SettingsError, match="row_labels has 2 lines for 3 rows"):
        config.labels(3)
    with pytest.raises(SettingsError, match="crop is 'middle'; allowed: none, center"):
        SimilarityConfig(crop="middle")
