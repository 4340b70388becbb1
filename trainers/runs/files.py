"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from ..errors import SaveError
from ..methods.results import not_finite

# What no name may have on some system that people move files to.
BAD_SIGNS = re.compile(r'[<>:"|?*\x00-\x1f\x7f\ud800-\udfff]')
RESERVED = re.compile(r"(con|prn|aux|nul|(com|lpt)[1-9])(\..*)?", re.IGNORECASE)
MOST_BYTES = 200  # of a part; with number and ending it stays below 255

# What safetensors calls the dtypes that results and LoRAs have.
TYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
MOST_READ_BYTES = 10**9  # adapters; whole models stay on the disk until they are needed
ALIGNED = 8  # bytes: tensors begin at a multiple of it


def checked_prefix(prefix: str) -> str:
    """Folder and beginning of a file's name, with forward slashes, if every system takes it.

    Raises:
        SaveError: it is a whole path, or a part of it cannot be a name.
    """
    prefix = prefix.replace("\\", "/")
    problems = [] if prefix.strip("/. ") else ["it is empty"]
    if prefix.startswith("/"):
        problems.append("it is a whole path")
    for part in prefix.split("/"):
        if signs := sorted(set(BAD_SIGNS.findall(part))):
            problems.append(f"a name cannot have {', '.join(map(repr, signs))}")
        elif part not in ("", ".", "..") and part[-1] in ". ":
            problems.append(f"{part!r} ends in a dot or a blank")
        elif RESERVED.fullmatch(part):
            problems.append(f"{part!r} is a name of Windows' own")
        elif len(part.encode()) > MOST_BYTES:
            problems.append(f"a part of it is longer than {MOST_BYTES} bytes")
    if problems:
        raise SaveError(
            f"Filename prefix {prefix[:MOST_BYTES]!r} cannot be used: {'; '.join(problems)}.\n"
            "Use a name inside ComfyUI's output folder, such as loras/dog."
        )
    return prefix


def save_tensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    dtype: torch.dtype | None,
    instead: Path | None = None,
) -> None:
    """Write a safetensors file at `path`, all or nothing; an existing file is replaced.

    One tensor after the other is made what the file has, so no more than one is there twice. That
    is why it is written here: safetensors' own functions want all of them so at once, and before
    0.7 copy all of them besides.

    Args:
        dtype: of the file's tensors; None leaves each as it is.
        instead: see `whole_file`.

    Raises:
        SaveError: the disk is full or the folder cannot be written.
    """
    header, num_bytes = _header(tensors, metadata, dtype)
    with whole_file(path, len(header) + num_bytes, instead) as file:
        file.write(header)
        for content in _contents(tensors, dtype):
            file.write(content)


def _header(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str], dtype: torch.dtype | None
) -> tuple[bytes, int]:
    """What a safetensors file begins with, and how many bytes follow."""
    told: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    start = 0
    for key in _in_order(tensors, dtype):
        kept = _stored_dtype(key, tensors[key], dtype)
        end = start + tensors[key].numel() * kept.itemsize
        shape = list(tensors[key].shape)
        told[key] = {"dtype": TYPES[kept], "shape": shape, "data_offsets": [start, end]}
        start = end
    text = json.dumps(told, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % ALIGNED)
    return len(text).to_bytes(8, "little") + text, start


def _contents(tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> Iterator[memoryview]:
    """The bytes of each tensor, as a file has them one after the other."""
    for key in _in_order(tensors, dtype):
        yield _as_stored(key, tensors[key], dtype).flatten().view(torch.uint8).numpy().data


def _in_order(tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> list[str]:
    """As in files of safetensors' own: wide numbers first, so that each lies at its multiple."""
    return sorted(tensors, key=lambda key: (-_stored_dtype(key, tensors[key], dtype).itemsize, key))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file on the CPU.

    Up to MOST_READ_BYTES are in memory of their own, so that nothing holds the file; larger ones
    are mapped, and while they are there Windows neither replaces nor deletes it.

    Raises:
        OSError, safetensors.SafetensorError: it is missing, cut, or something else.
    """
    import safetensors

    maps = path.stat().st_size > MOST_READ_BYTES
    with safetensors.safe_open(path, "pt") as file:
        tensors = ((key, file.get_tensor(key)) for key in file.keys())
        return {key: tensor if maps else tensor.clone() for key, tensor in tensors}


def flat(tokens: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Rows of learned tokens, by token and text encoder, as a file of tensors holds them."""
    return {
        f"{encoder} {token}": rows for token, by in tokens.items() for encoder, rows in by.items()
    }


def nested(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The rows that `flat` put in one dict."""
    tokens: dict[str, dict[str, Tensor]] = {}
    for key, rows in tensors.items():
        encoder, _, token = key.partition(" ")
        tokens.setdefault(token, {})[encoder] = rows
    return tokens


def sha256(path: Path) -> str:
    """The SHA-256 of a whole file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**24):
            digest.update(chunk)
    return digest.hexdigest()


def content_hashes(tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> dict[str, str]:
    """The SHA-256 of a file's tensors without its header, as modelspec and A1111 call it."""
    digest = hashlib.sha256()
    for content in _contents(tensors, dtype):
        digest.update(content)
    found = digest.hexdigest()
    return {"modelspec.hash_sha256": f"0x{found}", "sshs_model_hash": found}


def holds(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    dtype: torch.dtype | None,
) -> bool:
    """Whether the file at `path` is what `save_tensors` would write there."""
    return not differences(path, tensors, metadata, dtype)


def differences(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    dtype: torch.dtype | None,
) -> list[str]:
    """What of the file at `path` is not what `save_tensors` would write there, by name."""
    import safetensors

    try:
        with safetensors.safe_open(path, "pt") as file:
            found = {} if (file.metadata() or {}) == dict(metadata) else {"metadata": None}
            found |= dict.fromkeys(sorted(set(file.keys()) ^ set(tensors)))
            for key in set(file.keys()) & set(tensors):
                old, new = file.get_tensor(key), _as_stored(key, tensors[key], dtype)
                if old.dtype != new.dtype or not torch.equal(old, new):
                    found[key] = None
            return list(found)
    except (OSError, safetensors.SafetensorError) as error:
        return [f"all of it ({error})"]


def check_finite(
    path: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype | None, most_named: int = 3
) -> None:
    """See that a file of these tensors would hold numbers alone.

    Raises:
        SaveError: some are not finite, or not in the file's dtype.
    """
    bad = [
        key for key, tensor in tensors.items() if not_finite({key: _as_stored(key, tensor, dtype)})
    ]
    if not bad:
        return
    named = ", ".join(bad[:most_named]) + (", ..." if len(bad) > most_named else "")
    fit = not not_finite({key: tensors[key] for key in bad})
    raise SaveError(
        f"'{shown(path)}' was not saved: {len(bad)} of {len(tensors)} tensors are not finite "
        f"numbers{f' as {dtype}' if fit else ''}: {named}.\n"
        + ("Save them as bf16 or fp32." if fit else "Use another LoRA, or train this one anew.")
    )


def _as_stored(key: str, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    return tensor.detach().to("cpu", _stored_dtype(key, tensor, dtype)).contiguous()


def _stored_dtype(key: str, tensor: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    # Scales stay fp32: with rsLoRA one can pass fp16's largest number, and a DoRA's are divided by
    # norms that are not rounded.
    is_scale = tensor.ndim == 0 or key.endswith(".dora_scale")
    return torch.float32 if is_scale else dtype or tensor.dtype


def write_whole(path: Path, content: bytes) -> None:
    """Write `content` to `path`, all or nothing; see `whole_file`."""
    with whole_file(path, len(content)) as file:
        file.write(content)


@contextlib.contextmanager
def whole_file(path: Path, num_bytes: int = 0, instead: Path | None = None) -> Iterator[IO[bytes]]:
    """A temporary file beside `path` to write into, renamed into its place at the end.

    Args:
        num_bytes: its size, if that is known, for the message.
        instead: its name where `path` cannot be replaced, as on Windows while it is mapped.

    Raises:
        SaveError: the disk is full or the folder cannot be written.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
            temporary = Path(file.name)
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)  # a temporary file is private; a result is not
        try:
            temporary.replace(path)
        except PermissionError:
            if instead is None:
                raise
            temporary.replace(instead)
    except OSError as error:
        raise save_error(path, num_bytes, error) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)  # after the rename there is none


def delete(paths: Iterable[Path]) -> None:
    """Delete files; those that are in use stay."""
    for path in paths:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def save_error(path: Path, num_bytes: int, error: OSError) -> SaveError:
    """What to tell the user of a file that could not be written; 0 bytes are an unknown number."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        needed = f", {num_bytes / 1e6:.1f} MB are needed" if num_bytes else ""
        return SaveError(
            f"'{shown(path)}' was not saved: the disk is full{needed}.\n"
            "Free some space and queue again."
        )
    return SaveError(
        f"'{shown(path)}' was not saved: {error.strerror}.\n"
        "Make its folder writable, or let ComfyUI write elsewhere (--output-directory)."
    )


def shown(path: Path) -> str:
    """A path as messages name it: logs are shared, and what is above it is the user's own."""
    return f"{path.parent.name}/{path.name}"
