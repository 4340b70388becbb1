"""Installing the pack adds packages and moves none that a host has."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from dev_setup import LOWEST
from tests.host import ROOT

REQUIREMENTS = ROOT / "requirements.txt"
# As a ComfyUI of early 2026 may have them; a host of today is where these tests run.
OLDER = (
    "transformers==4.57.6", "tokenizers==0.22.2", "huggingface_hub==0.36.2", "numpy==2.2.6",
    "pillow==11.3.0", "safetensors==0.6.2",
)  # fmt: skip
TORCH = "2.8.0"
KEPT = {"torch", "torchvision", "torchaudio", "safetensors", "transformers", "tokenizers"}
KEPT |= {"huggingface-hub", "numpy", "pillow"}
PINS = [Requirement(pin) for pin in LOWEST]
ABOVE_THEIR_BOUND = {"safetensors", "matplotlib"}  # dev_setup.py says why


def pip(python: str, *arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--python", python, "install", "-q", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if re.search("ConnectionError|Max retries|name resolution|timed out", done.stderr):
        pytest.skip("needs the package index")
    assert done.returncode == 0, done.stderr


def moved(python: str, report: Path) -> set[str]:
    """What of KEPT an installation into that environment would replace."""
    pip(python, "--dry-run", "--report", str(report), "-r", str(REQUIREMENTS))
    entries = json.loads(report.read_text())["install"]
    names = {entry["metadata"]["name"].lower().replace("_", "-") for entry in entries}
    return names & KEPT


@pytest.mark.skipif("PERSONALIZE_LOWEST" in os.environ, reason="pip would find those, not a host's")
def test_packages_of_an_older_host_stay(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "host"], check=True)
    python = str(tmp_path / "host" / "bin" / "python")
    pip(python, "--no-deps", *OLDER)
    (site,) = (tmp_path / "host").glob("lib/python*/site-packages")
    torch = site / f"torch-{TORCH}.dist-info"  # its name will do: it is gigabytes
    torch.mkdir()
    (torch / "METADATA").write_text(f"Metadata-Version: 2.1\nName: torch\nVersion: {TORCH}\n")
    assert moved(python, tmp_path / "report.json") == set()


def test_packages_of_this_environment_stay(tmp_path: Path) -> None:
    assert moved(sys.executable, tmp_path / "report.json") == set()


def test_pyproject_asks_for_the_same() -> None:
    block = re.search(
        r"^dependencies = \[(.*?)\]", (ROOT / "pyproject.toml").read_text(), re.M | re.S
    )
    assert block is not None
    assert re.findall(r'"(.+?)"', block[1]) == REQUIREMENTS.read_text().split()


# -- the lowest versions, with which `python dev.py test` runs the unit tests once more ------------


def test_each_bound_is_tried() -> None:
    for bound in map(Requirement, REQUIREMENTS.read_text().split()):
        pins = [pin for pin in PINS if pin.name == bound.name]
        assert pins, bound
        for pin in pins:
            lowest = str(pin.specifier).removeprefix("==")
            assert lowest in bound.specifier, pin
            if bound.specifier and bound.name not in ABOVE_THEIR_BOUND:
                assert lowest.removesuffix(".0") == str(bound.specifier).removeprefix(">="), pin


@pytest.mark.skipif("PERSONALIZE_LOWEST" not in os.environ, reason="runs on the newest packages")
def test_what_runs_are_the_lowest() -> None:
    folder = Path(os.environ["PERSONALIZE_LOWEST"])
    for pin in PINS:
        if pin.marker is None or pin.marker.evaluate():
            assert metadata.version(pin.name) in pin.specifier, pin
            place = importlib.import_module(pin.name).__file__
            assert place is not None
            assert Path(place).is_relative_to(folder), place
