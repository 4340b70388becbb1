"""Saving takes no second copy in memory, and replaces no file that is mapped into it."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.host import ROOT
from trainers.runs import files as run_files
from trainers.runs.folder import Result, RunFolder

NUM, EACH_BYTES = 25, 2**23  # as many tensors, 210 MB in all
# A process of its own, since the peak is that of the whole process. Each case begins at a new one.
SAVES = """
import json, sys
from pathlib import Path
import torch
from trainers.runs.files import check_finite, content_hashes, save_tensors
from trainers.runs.folder import Result, RunFolder

def known(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

folder = RunFolder(Path(sys.argv[1]), "0" * 64)
num, each = map(int, sys.argv[2:])
tensors = {str(n): torch.full((2, each // 8), float(n)) for n in range(num)}
turned = {name: tensor.T for name, tensor in tensors.items()}  # not contiguous
cases = {
    "result": lambda: folder.write_result(Result(1, tensors, {}, {}, [])),
    "state": lambda: folder.write_state({"step": 1, "weights": tensors}, [], keep=1),
    "narrowed": lambda: save_tensors(folder.path / "narrowed", tensors, {}, torch.float16),
    "turned": lambda: save_tensors(folder.path / "turned", turned, {}, None),
    "hashes": lambda: content_hashes(tensors, torch.float16),
    "finite": lambda: check_finite(folder.path, tensors, torch.bfloat16),
}
more = {}
save_tensors(folder.path / "first", {"a": torch.ones(1)}, {}, None)  # what is imported for it
for name, save in cases.items():
    Path("/proc/self/clear_refs").write_text("5")  # the peak is what is there now
    before = known("VmRSS:")
    save()
    more[name] = known("VmHWM:") - before
print(json.dumps(more))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_saving_takes_no_second_copy_of_what_is_saved(tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", SAVES, str(tmp_path), str(NUM), str(EACH_BYTES)]
    ran = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=True)
    more = json.loads(ran.stdout)
    assert {name: n for name, n in more.items() if n > NUM * EACH_BYTES / 3} == {}


# -- files that are mapped into memory ----------------------------------------


def is_mapped(path: Path) -> bool:
    return str(path) in Path("/proc/self/maps").read_text()


@pytest.fixture
def like_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is mapped can neither be replaced nor deleted."""
    if sys.platform != "linux":
        pytest.skip("mappings are listed in /proc")
    replace, unlink = Path.replace, Path.unlink

    def refuse(path: Path) -> None:
        if is_mapped(path):
            raise PermissionError(errno.EACCES, "Access is denied", str(path))

    def replaced(self: Path, target: Path) -> Path:
        refuse(target)
        return replace(self, target)

    def unlinked(self: Path, missing_ok: bool = False) -> None:
        refuse(self)
        unlink(self, missing_ok)

    monkeypatch.setattr(Path, "replace", replaced)
    monkeypatch.setattr(Path, "unlink", unlinked)


def folder_of(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path, "1" * 64)


def learned(number: float, steps: int = 4) -> Result:
    tokens = {"<sks>": {"clip_l": torch.full((1, 2), number)}}
    return Result(steps, {"w": torch.full((4096,), number)}, {}, tokens, [])


def read(folder: RunFolder, steps: int = 4) -> tuple[float, float]:
    """The numbers of what is there, and of its tokens."""
    found = folder.result(steps)
    assert found is not None
    return float(found.tensors["w"][0]), float(found.tokens["<sks>"]["clip_l"][0, 0])


def files(folder: RunFolder) -> list[str]:
    return sorted(path.name for path in folder.path.glob("result-*"))


NAME, TOKENS, NEXT = (f"result-00000004{end}.safetensors" for end in ("", ".tokens", ".2"))


@pytest.mark.usefixtures("like_windows")
def test_small_result_that_is_in_use_is_replaced(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    folder.write_result(learned(1))
    in_use = folder.result(4)
    folder.write_result(learned(2))
    assert (read(folder), files(folder)) == ((2, 2), [NAME, TOKENS])
    assert in_use is not None
    assert in_use.tensors["w"][0] == 1


@pytest.mark.usefixtures("like_windows")
def test_large_result_that_is_in_use_gives_way_to_the_next_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_files, "MOST_READ_BYTES", 1000)
    folder = folder_of(tmp_path)
    folder.write_result(learned(1))
    in_use = folder.result(4)
    assert is_mapped(tmp_path / NAME)
    for number in (2, 3):  # the second time it is the newest that is replaced
        folder.write_result(learned(number))
        assert (read(folder), files(folder)) == ((number, number), [NEXT, NAME, TOKENS])
    assert (folder.result_steps, folder.has_result(4)) == ([4], True)
    assert in_use is not None
    assert in_use.tensors["w"][0] == 1
    del in_use
    folder.write_result(learned(4))
    assert (read(folder), files(folder)) == ((4, 4), [NEXT, TOKENS])


@pytest.mark.usefixtures("like_windows")
def test_dropped_results_are_gone_with_their_tokens(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    for steps in (4, 6, 8):
        folder.write_result(learned(1, steps))
    folder.drop_results(4, 8, 9)
    assert folder.result_steps == [6]
    assert len(files(folder)) == 2
