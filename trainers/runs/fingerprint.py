"""What makes two runs the same: hashes of their facts, and of all bytes of weights and files.

A setting that came later says what was done before it was there (Setting.before); runs in which it
stands so are those that do not know it, and keep their fingerprints. What was mended, and decides
the results of some runs alone, makes new runs of those (`mended`). What decides all results makes
all runs new (folder.FORMAT).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import time
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import SaveError
from ..settings.field import from_values, settings_of
from ..settings.run import RunConfig, config_groups
from .files import sha256, write_whole

MOST_THREADS = 8
MOST_BYTES = 5_000_000  # of what is remembered: 50,000 files
SETTLED_SECONDS = 3  # clocks of file systems are coarse: a younger file may change unseen
NARROW = (str(torch.float16), str(torch.bfloat16))
LINE = re.compile(rb"([0-9a-f]{32}) ([0-9a-f]{64})\n")

# -- of runs ------------------------------------------------------------------


def fingerprint_of(facts: Mapping[str, Any]) -> str:
    """A hash of the facts, but for those that a run may change and go on: see `same_run`."""
    return hashlib.sha256(json.dumps(same_run(facts), sort_keys=True).encode()).hexdigest()


def same_run(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts that two runs share of which the longer one goes on from the shorter one.

    A schedule that ends with the run makes each length a run of its own.
    """
    shared = {k: v for k, v in facts.items() if k not in ("store", "memory")}
    if facts["training"]["lr_schedule"] in ("constant", "constant_with_warmup"):
        length = ("steps", "epochs")
        shared["training"] = {k: v for k, v in facts["training"].items() if k not in length}
    groups = config_groups(facts["method"])
    for group in groups.keys() & shared.keys():
        before = {name: known.before for name, (_, known) in settings_of(groups[group]).items()}
        shared[group] = {
            name: value
            for name, value in shared[group].items()
            if before.get(name) is None or value != before[name]
        }
    return shared


def config_of(facts: Mapping[str, Any]) -> RunConfig:
    """The settings in a run's facts; what came later stands as it did before it was there.

    Raises:
        SettingsError, KeyError: the facts are none of a run, or were edited.
    """
    made = {}
    for group, kind in config_groups(facts["method"]).items():
        later = {n: known.before for n, (_, known) in settings_of(kind).items()}
        before = {name: value for name, value in later.items() if value is not None}
        made[group] = from_values(kind, before | facts.get(group, {}))
    return RunConfig(facts["method"], **made)


def mended(config: RunConfig, computes_in: str) -> dict[str, Any]:
    """What was mended in runs of these settings; nothing for all others.

    Args:
        computes_in: as models.precision has it.
    """
    own = config.own
    found = []
    if getattr(own, "variant", "") == "dora":
        found.append("magnitudes in fp32")
    if getattr(own, "ema_on_cpu", False) and own.ema_decay and own.ema_interval_steps > 1:
        found.append("average over intervals")
    if getattr(own, "weights", "") == "bf16":
        found.append("rounding by pieces")  # other random numbers, and a state in other parts
    if getattr(own, "follows_base", False) and computes_in.startswith(NARROW):
        found.append("adapters in the base's dtype")
    if computes_in.startswith(str(torch.float16)):
        found.append("steps that overflow are done again")
    return {"mended": found} if found else {}


# -- of weights ---------------------------------------------------------------


def weights_fingerprint(modules: Mapping[str, nn.Module]) -> str:
    """A hash of the modules' weights; see `tensors_fingerprint`."""
    return tensors_fingerprint(
        {
            f"{name}.{key}": tensor
            for name, module in sorted(modules.items())
            for key, tensor in module.state_dict().items()
        }
    )


def tensors_fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """A hash of names, shapes, dtypes and every byte of the tensors.

    A checksum of each tensor, in threads, then a cryptographic hash of the checksums: it has to
    tell models apart, not to withstand forgers, and gigabytes are read at the speed of memory.
    """
    with ThreadPoolExecutor(min(MOST_THREADS, os.cpu_count() or 1)) as pool:
        checksums = list(pool.map(_checksum, tensors.values()))
    digest = hashlib.sha256()
    for (key, tensor), checksum in zip(tensors.items(), checksums, strict=True):
        digest.update(f"{key} {tuple(tensor.shape)} {tensor.dtype} {checksum};".encode())
    return digest.hexdigest()


def _checksum(tensor: Tensor) -> int:
    flat = tensor.detach().cpu().contiguous().flatten()
    return zlib.crc32(flat.view(torch.uint8).numpy().data) if len(flat) else 0


class KnownFiles:
    """The SHA-256 of files, remembered by path, size and time of the last change.

    They are lines of a file of their own, each written at once at its end, so several processes
    may share it. What cannot be written or read there is only read again where it comes from.

    Args:
        kept: the file; it need not be there.
    """

    def __init__(self, kept: Path) -> None:
        self._kept = kept
        self._hashes: dict[bytes, bytes] = {}
        self._read_bytes = 0

    def __call__(self, path: Path) -> bytes:
        """The hash of a file.

        Raises:
            OSError: it cannot be read.
        """
        name, settled = _name(path)
        self._catch_up()
        if name not in self._hashes:
            found = sha256(path).encode()
            if not settled or _name(path)[0] != name:
                return bytes.fromhex(found.decode())
            self._remember(name, found)
        return bytes.fromhex(self._hashes[name].decode())

    def _catch_up(self) -> None:
        """Read what others have written since."""
        with contextlib.suppress(OSError), self._kept.open("rb") as file:
            if file.seek(0, os.SEEK_END) < self._read_bytes:  # cut: see below
                self._read_bytes = 0
            file.seek(self._read_bytes)
            for line in file:
                if match := LINE.fullmatch(line):
                    self._hashes[match[1]] = match[2]
                if line.endswith(b"\n"):
                    self._read_bytes += len(line)

    def _remember(self, name: bytes, found: bytes) -> None:
        self._hashes[name] = found
        with contextlib.suppress(OSError, SaveError):
            self._kept.parent.mkdir(parents=True, exist_ok=True)
            with self._kept.open("ab", buffering=0) as file:
                file.write(b"%b %b\n" % (name, found))
                if file.tell() <= MOST_BYTES:
                    return
            lines = self._kept.read_bytes().splitlines(keepends=True)
            write_whole(self._kept, b"".join(lines[len(lines) // 2 :]))


def _name(path: Path) -> tuple[bytes, bool]:
    """What stands for a file as it is now, and whether its time would tell of a change."""
    facts = path.stat()
    told = json.dumps([os.path.realpath(path), facts.st_size, facts.st_mtime_ns])
    settled = time.time() - facts.st_mtime > SETTLED_SECONDS
    return hashlib.sha256(told.encode()).hexdigest()[:32].encode(), settled
