"""Fixtures: real ComfyUI hosts with this pack in them, base models to load there, an optimizer."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from demo.checkpoint import DEMO_CHECKPOINT, compose
from tests import checkpoints
from tests.browser import RENDERERS, Page, page
from tests.host import ROOT, Host

PROBES = ROOT / "tests" / "probes"  # a node pack that asserts inside the host
DEV_DIR = Path(os.environ.get("PERSONALIZE_DEV_DIR") or ROOT / ".dev")
# Models this small gain nothing from threads, and lose much where other processes want the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# How the hosts are started; on a machine with a GPU, "--force-fp32 --fp32-vae" tries it there.
HOST_ARGUMENTS = os.environ.get("PERSONALIZE_HOST_ARGUMENTS", "--cpu").split()
SHARED: list[Host] = []  # the hosts that run now for all tests
CHECKPOINTS = {
    "thin_sd15.safetensors": ("thin_sd15", "fp32"),
    "thin_sd15_fp16.safetensors": ("thin_sd15", "fp16"),
    "thin_sdxl.safetensors": ("thin_sdxl", "fp16"),
}


def on_the_cpu() -> bool:
    """Whether the hosts compute there."""
    return "--cpu" in HOST_ARGUMENTS


on_a_cpu = pytest.mark.skipif(not on_the_cpu(), reason="holds on a CPU alone")


@pytest.fixture
def damped_adamw(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives every AdamW, ours and a plain loop's, an epsilon above the tiny models' gradients.

    AdamW divides a gradient by its own size. So one that is nearly nothing but rounding, which
    differs between CPUs, moves its weight as far as any other does. Beside this epsilon a weight
    moves by rate / epsilon times its gradient, and rounding counts for as little as it is; rate,
    decay and moments act as ever, and a gradient of the wrong length shows as well. Tests take a
    learning rate of 0.1 with it, so that weights move by about their gradients.
    """
    monkeypatch.setattr(torch.optim, "AdamW", functools.partial(torch.optim.AdamW, eps=0.1))


@pytest.fixture(scope="session")
def checkpoint_files() -> dict[str, Path]:
    """The base models by the names under which the hosts offer them."""
    made = {file: model_file(name, dtype) for file, (name, dtype) in CHECKPOINTS.items()}
    with _folder() as folder:
        return made | {DEMO_CHECKPOINT: compose(folder / DEMO_CHECKPOINT)}


def model_file(name: str, dtype: str = "fp16") -> Path:
    """The file of one of tests.checkpoints' models; Host.add_model offers it."""
    with _folder() as folder:
        return checkpoints.cached(name, folder, dtype)


@contextmanager
def _folder() -> Iterator[Path]:
    """Where base models are kept, for one process of the tests at a time."""
    folder = DEV_DIR / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        yield folder


@pytest.fixture(scope="session")
def checkpoint(checkpoint_files: dict[str, Path]) -> Path:
    """A thin SD1.5 in fp32; the hosts offer it as ``thin_sd15.safetensors``."""
    return checkpoint_files["thin_sd15.safetensors"]


@pytest.fixture(scope="session")
def host(checkpoint_files: dict[str, Path]) -> Iterator[Host]:
    """The newest supported ComfyUI, shared by all tests."""
    with _shared("PERSONALIZE_COMFYUI", checkpoint_files) as running:
        yield running


@pytest.fixture(scope="session")
def old_host(checkpoint_files: dict[str, Path]) -> Iterator[Host]:
    """The oldest supported ComfyUI, shared by all tests."""
    with _shared("PERSONALIZE_COMFYUI_OLD", checkpoint_files) as running:
        yield running


@pytest.fixture(scope="session")
def fp32_host(checkpoint_files: dict[str, Path]) -> Iterator[Host]:
    """A ComfyUI that keeps text encoders in fp32; by default it rounds patched ones to fp16."""
    with _shared("PERSONALIZE_COMFYUI", checkpoint_files, "--fp32-text-enc") as running:
        yield running


@pytest.fixture(scope="module")
def new_host(checkpoint_files: dict[str, Path]) -> Iterator[Host]:
    """A ComfyUI of the file's own, to measure memory or to break."""
    with _host("PERSONALIZE_COMFYUI", checkpoint_files) as running:
        yield running


@pytest.fixture(scope="module", params=RENDERERS)
def tab(request: pytest.FixtureRequest, host: Host) -> Iterator[Page]:
    """A page of the newest ComfyUI in a browser, in either renderer, for all tests of a file."""
    with page(host, request.param) as found:
        yield found


@pytest.fixture
def opened(request: pytest.FixtureRequest, tab: Page) -> Iterator[Page]:
    """The file's page with an empty graph in it; it may not complain."""
    if request.session.testsfailed:  # nobody knows what it shows
        tab.open()
    tab.begin_anew()
    yield tab
    assert tab.complaints == []


@pytest.fixture(autouse=True, scope="module")
def little_in_memory(request: pytest.FixtureRequest) -> Iterator[None]:
    """After a file with tests in hosts, those that serve others too hold none of its models."""
    yield
    own = (item for item in request.session.items if item.path == request.node.path)
    if any(item.get_closest_marker("host") for item in own):  # it takes a host a second or two
        forget_models()


@pytest.fixture
def much_memory() -> Iterator[None]:
    """For a test that takes ten gigabytes by itself."""
    forget_models()
    yield
    forget_models()


def forget_models() -> None:
    for running in SHARED:
        running.free()


@pytest.fixture(autouse=True)
def little_on_disk(request: pytest.FixtureRequest) -> Iterator[None]:
    """Deletes the weights that a test has made, or the suite would leave tens of GB."""
    yield
    if request.node.get_closest_marker("host"):  # to look through thousands of files takes long
        for running in SHARED:
            running.delete_large_files()


@contextmanager
def _shared(variable: str, checkpoint_files: dict[str, Path], *args: str) -> Iterator[Host]:
    with _host(variable, checkpoint_files, *args) as running:
        SHARED.append(running)
        yield running
        SHARED.remove(running)


def _host(variable: str, checkpoint_files: dict[str, Path], *args: str) -> Host:
    return Host(
        _checkout(variable),
        more_packs={"probes": PROBES},
        checkpoints=checkpoint_files,
        args=(*HOST_ARGUMENTS, *args),
    )


def _checkout(variable: str) -> Path:
    path = os.environ.get(variable)
    if not path:
        pytest.skip(f"{variable} names no ComfyUI checkout; `python dev.py test` sets it")
    return Path(path)


def pytest_report_header() -> str:
    """The packages that are tried; `python dev.py test` tries both ends of their bounds."""
    lines = (ROOT / "requirements.txt").read_text().split()
    names = [line.split(">")[0] for line in lines]
    return "with " + ", ".join(f"{name} {metadata.version(name)}" for name in names)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Marks what needs a host, so that ``-m "not host"`` is quick.

    Those run last: what is quick fails first. Of several processes each takes the next file when
    it has none left, so there they run first: small files fill what is left of the time.
    """
    hosts = {"host", "old_host", "fp32_host", "new_host"}
    for item in items:
        parameters = list(item.callspec.params.values()) if hasattr(item, "callspec") else []
        asked = {*getattr(item, "fixturenames", ()), *(p for p in parameters if type(p) is str)}
        if hosts & asked:
            item.add_marker(pytest.mark.host)
    is_one_of_several = hasattr(config, "workerinput")
    items.sort(key=lambda item: (item.get_closest_marker("host") is None) == is_one_of_several)
