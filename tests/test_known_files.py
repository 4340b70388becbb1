"""What files hash to is remembered: a second look at the same files reads none of them."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.dataset_files import half_white, noise, save
from trainers.data.dataset import Dataset, folder_dataset
from trainers.runs import fingerprint
from trainers.runs.files import sha256
from trainers.runs.fingerprint import KnownFiles
from trainers.settings.dataset import DatasetConfig

LONG_AGO = 1_600_000_000


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are opened or read from here on."""
    names: list[str] = []
    for name in ("open", "read_bytes"):
        before = getattr(Path, name)

        def noted(self: Path, *args: Any, before: Any = before, **named: Any) -> Any:
            names.append(self.name)
            return before(self, *args, **named)

        monkeypatch.setattr(Path, name, noted)
    return names


def pictures(folder: Path) -> Path:
    """A picture with a mask, and one without; each with a control image."""
    for name, size in (("a", 128), ("b", 192), ("a.control", 128), ("b.control", 128)):
        save(folder / f"{name}.png", (size, size))
    half_white().save(folder / "a.mask.png")
    for path in folder.iterdir():
        os.utime(path, (LONG_AGO, LONG_AGO))
    return folder


def dataset(folder: Path, kept: Path) -> Dataset:
    """As another process makes it."""
    return folder_dataset(
        folder, DatasetConfig(resolution=128, masks="auto"), hash_file=KnownFiles(kept)
    )


def printed(folder: Path, kept: Path, reads: list[str]) -> tuple[str, list[str]]:
    """A data set's fingerprint, and the files that were read for it."""
    made = dataset(folder, kept)
    reads.clear()
    found = made.fingerprint()
    return found, sorted(name for name in reads if name != kept.name)


def test_second_fingerprint_reads_no_picture(tmp_path: Path, reads: list[str]) -> None:
    folder, kept = pictures(tmp_path / "dog"), tmp_path / "hashes.txt"
    whole = folder_dataset(folder, DatasetConfig(resolution=128, masks="auto")).fingerprint()
    every = sorted(path.name for path in folder.iterdir())
    assert printed(folder, kept, reads) == (whole, every)
    assert printed(folder, kept, reads) == (whole, [])


@pytest.mark.parametrize("name", ["a.png", "a.mask.png"])
def test_file_of_the_same_size_and_another_time_is_read_again(
    tmp_path: Path, name: str, reads: list[str]
) -> None:
    folder, kept = pictures(tmp_path / "dog"), tmp_path / "hashes.txt"
    before, _ = printed(folder, kept, reads)
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # of the PNG's last chunk
    os.utime(folder / name, (LONG_AGO + 1, LONG_AGO + 1))
    after, read = printed(folder, kept, reads)
    assert read == [name]
    assert after != before


def test_file_that_changed_just_now_is_not_remembered(tmp_path: Path) -> None:
    path, known = tmp_path / "a", KnownFiles(tmp_path / "hashes.txt")
    for content in (b"one", b"two"):  # within one tick of a coarse clock: the same time and size
        path.write_bytes(content)
        os.utime(path, (time.time() + 3600,) * 2)
        assert known(path).hex() == sha256(path)


def test_what_another_process_has_read_is_known_and_damage_is_passed_over(
    tmp_path: Path, reads: list[str]
) -> None:
    kept, path = tmp_path / "hashes.txt", tmp_path / "a"
    path.write_bytes(b"x")
    os.utime(path, (LONG_AGO, LONG_AGO))
    one, other = KnownFiles(kept), KnownFiles(kept)
    reads.clear()
    known = [one(path), other(path)]
    kept.write_bytes(b"\xff\nnonsense\n" + kept.read_bytes() + b"half a li")
    known += [KnownFiles(kept)(path), one(path)]
    assert reads.count("a") == 1
    assert {found.hex() for found in known} == {sha256(path)}


def test_several_at_once_lose_nothing(tmp_path: Path, reads: list[str]) -> None:
    kept = tmp_path / "hashes.txt"
    files = [tmp_path / f"{number}.png" for number in range(40)]
    for file in files:
        file.write_bytes(file.name.encode())
        os.utime(file, (LONG_AGO, LONG_AGO))
    threads = [
        threading.Thread(target=lambda own: [*map(KnownFiles(kept), own)], args=(files[n::4],))
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    reads.clear()
    known = KnownFiles(kept)
    assert len({known(file) for file in files}) == len(files)
    assert set(reads) == {kept.name}


def test_the_oldest_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprint, "MOST_BYTES", 1000)
    kept, known = tmp_path / "hashes.txt", KnownFiles(tmp_path / "hashes.txt")
    noise(8, 8).save(tmp_path / "a.png")
    for number in range(50):
        os.utime(tmp_path / "a.png", (LONG_AGO + number,) * 2)
        known(tmp_path / "a.png")
        assert kept.stat().st_size <= 1000
    lines = kept.read_text()
    KnownFiles(kept)(tmp_path / "a.png")
    assert kept.read_text() == lines, "the newest is known"
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".part"] == []
