"""A real ComfyUI in its own process, driven as its users drive it: over HTTP.

Standard library only, because dev.py, tests, benchmarks and the demo share it.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from .events import Event, EventStream

ROOT = Path(__file__).resolve().parent.parent
PACK_NAME = "personalize"  # no dots: a dot in the folder's name breaks the help pages
START_SECONDS = 300  # a cold disk and two busy cores; 8 s when warm
STOP_SECONDS = 20
Prompt = dict[str, dict[str, Any]]


class HostError(RuntimeError):
    """The host refused a prompt, a node failed, or the host died.

    Attributes:
        summary: The message without the host's traceback.
        kind: The exception's type as the host names it, such as ``ValueError``;
            ``interrupted`` after a cancel, ``invalid prompt`` for a refused one.
        node: The node's class, where one is to blame.
        details: All that the host sent.
    """

    def __init__(
        self,
        summary: str,
        *,
        kind: str,
        node: str = "",
        details: Mapping[str, Any] | None = None,
    ) -> None:
        trace = "".join((details or {}).get("traceback", []))
        super().__init__(f"{summary}\n{trace}".rstrip())
        self.summary = summary
        self.kind = kind
        self.node = node
        self.details = dict(details or {})


class Host:
    """A running ComfyUI; ``with Host(path) as host`` starts and stops it.

    Args:
        comfyui: The checkout, the folder that holds ``main.py``.
        base: Folder for models, input, output and user files; a temporary one if None.
        pack: The node pack's folder; None starts a host without it.
        more_packs: Further node packs, by folder name.
        checkpoints: File name to path of the checkpoints that the host offers.
        args: More arguments for ``main.py``.
        python: Interpreter; this one if None.
        environment: Variables that its process has beside, or instead of, those of this one.
    """

    def __init__(
        self,
        comfyui: Path,
        *,
        base: Path | None = None,
        pack: Path | None = ROOT,
        more_packs: Mapping[str, Path] | None = None,
        checkpoints: Mapping[str, Path] | None = None,
        args: Sequence[str] = ("--cpu",),
        python: str | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.comfyui = Path(comfyui).resolve()
        self._temporary = base is None
        self.base = Path(base or tempfile.mkdtemp(prefix="personalize-host-")).resolve()
        self.log_path = self.base / "host.log"
        self._packs = {**({PACK_NAME: pack} if pack else {}), **(more_packs or {})}
        self._args = list(args)
        self._python = python or sys.executable
        self._environment = {"PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1", **(environment or {})}
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""
        for folder in ("models/checkpoints", "models/loras", "input", "output", "custom_nodes"):
            (self.base / folder).mkdir(parents=True, exist_ok=True)
        for name, path in (checkpoints or {}).items():
            self.add_model("checkpoints", path, name)

    def __enter__(self) -> Host:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    # -- life -------------------------------------------------------------

    def start(self) -> None:
        """Starts the process and returns when it answers; HostError if it dies before."""
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}"
        command = [self._python, "main.py", "--listen", "127.0.0.1", "--port", str(port)]
        command += ["--base-directory", str(self.base)]
        command += ["--database-url", f"sqlite:///{self.base / 'comfy.db'}"]
        command += ["--disable-api-nodes", "--disable-all-custom-nodes"]
        for name, pack in self._packs.items():
            _link(pack, self.base / "custom_nodes" / name)
        if self._packs:
            command += ["--whitelist-custom-nodes", *self._packs]
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(
                [*command, *self._args],
                cwd=self.comfyui,
                env=environment | self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches us, and we stop it in order
            )
        try:
            self._wait_until_up()
        except BaseException:
            self.stop()
            raise

    def _wait_until_up(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            self._check_alive()
            try:
                self.get("/system_stats")
            except OSError:
                time.sleep(0.2)
            else:
                return
        raise self._dead(f"ComfyUI did not answer within {START_SECONDS} s")

    def stop(self) -> None:
        """Ends the process that this object started, and removes its temporary folder."""
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._temporary:
            shutil.rmtree(self.base, ignore_errors=True)

    def kill(self) -> None:
        """Ends the process at once (SIGKILL), as a crash would; `start` starts another one."""
        assert self._process is not None, "the host is not running"
        self._process.kill()
        self._process.wait()
        self._process = None

    @property
    def pid(self) -> int:
        assert self._process is not None, "the host is not running"
        return self._process.pid

    # -- files ------------------------------------------------------------

    def add_model(self, kind: str, path: Path, name: str | None = None) -> str:
        """Offers a model file without a copy, in place of what has that name; returns the name."""
        name = name or Path(path).name
        folder = self.base / "models" / kind
        folder.mkdir(parents=True, exist_ok=True)
        _link(Path(path), folder / name)
        return name

    def add_input(self, path: Path, name: str | None = None) -> str:
        """Copies a picture or a folder of pictures, in place of what has that name, to input/."""
        name = name or Path(path).name
        target = self.base / "input" / name
        if Path(path).is_dir():
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(path, target)
        else:
            shutil.copyfile(path, target)
        return name

    def delete_large_files(self, num_bytes: int = 10**7) -> None:
        """Deletes the weights that graphs have written: results, states, checkpoints."""
        for folder, _, names in os.walk(self.base / "output"):  # a third of what rglob takes
            for path in (os.path.join(folder, name) for name in names):
                if os.lstat(path).st_size > num_bytes:
                    os.unlink(path)

    def images(self, entry: Mapping[str, Any]) -> list[Path]:
        """Paths of the picture files that a finished prompt's nodes showed, in node order."""
        files = [f for shown in entry["outputs"].values() for f in shown.get("images", [])]
        return [self.base / f["type"] / f["subfolder"] / f["filename"] for f in files]

    # -- prompts ----------------------------------------------------------

    def object_info(self, node: str | None = None) -> dict[str, Any]:
        """All nodes' schemas by class, or the schema of one."""
        if node is None:
            return self.get("/object_info")
        schema: dict[str, Any] = self.get(f"/object_info/{urllib.parse.quote(node)}")[node]
        return schema

    def queue(self, prompt: Prompt, client_id: str | None = None) -> str:
        """Queues a prompt in API form and returns its id; HostError if it is invalid."""
        body = {"prompt": prompt, "client_id": client_id or uuid.uuid4().hex}
        try:
            reply = self.post("/prompt", body)
        except urllib.error.HTTPError as error:
            raise _refused(json.loads(error.read())) from None
        if reply["node_errors"]:
            # The host runs the output nodes that are valid and leaves out the others.
            self.post("/queue", {"clear": True})
            raise _refused(reply)
        return str(reply["prompt_id"])

    def wait(self, prompt_id: str, timeout: float = 600) -> dict[str, Any]:
        """Waits for a prompt and returns its history entry; HostError if a node failed."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            self._check_alive()
            entry = self.get(f"/history/{prompt_id}").get(prompt_id)
            if entry is not None:
                return _succeeded(entry)
            time.sleep(0.1)
        words = f"A prompt took longer than {timeout:.0f} s.\n{self.log_tail()}"
        raise HostError(words, kind="timeout")

    def run(self, prompt: Prompt, timeout: float = 600) -> dict[str, Any]:
        """Queues a prompt and waits for its history entry."""
        return self.wait(self.queue(prompt), timeout)

    def follow(
        self, prompt: Prompt, on_event: Callable[[Event], None], timeout: float = 600
    ) -> dict[str, Any]:
        """Like ``run``, and calls ``on_event`` with each event of the prompt as it comes."""
        client_id = uuid.uuid4().hex
        stream = EventStream(self.url, client_id)
        stream.wait_at_most(timeout)
        try:
            prompt_id = self.queue(prompt, client_id)
            for event in stream:
                on_event(event)
                if event.data.get("prompt_id") == prompt_id and _is_last(event):
                    break
        except TimeoutError:
            pass  # silence: wait() below says what became of the prompt
        finally:
            stream.close()
        return self.wait(prompt_id, timeout)

    def interrupt(self) -> None:
        """Cancels the running prompt, as the Cancel button does."""
        self.post("/interrupt")

    def get(self, path: str) -> dict[str, Any]:
        """What the host answers to a question; OSError with the status if it refuses."""
        with urllib.request.urlopen(self.url + path, timeout=120) as reply:
            return _object(reply.read())

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """What the host answers to a request; OSError with the status if it refuses."""
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, json.dumps(body or {}).encode(), headers)
        with urllib.request.urlopen(request, timeout=120) as reply:
            return _object(reply.read())

    def free(self) -> None:
        """Asks the host to unload all models and drop its cache before the next prompt."""
        self.post("/free", {"unload_models": True, "free_memory": True})

    # -- what it did ------------------------------------------------------

    def log(self) -> str:
        """All that the host has printed since it started."""
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def log_tail(self, num_lines: int = 30) -> str:
        return "\n".join(self.log().splitlines()[-num_lines:])

    def rss_bytes(self) -> int:
        """Resident memory now (Linux)."""
        return self._memory_bytes("VmRSS")

    def peak_rss_bytes(self) -> int:
        """The most resident memory since the start or ``reset_peak`` (Linux)."""
        return self._memory_bytes("VmHWM")

    def reset_peak(self) -> None:
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")  # man 5 proc: resets VmHWM

    def _memory_bytes(self, field: str) -> int:
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))

    # -- is it alive ------------------------------------------------------

    def _check_alive(self) -> None:
        if self._process is None or self._process.poll() is not None:
            raise self._dead("ComfyUI ended by itself")

    def _dead(self, what: str) -> HostError:
        return HostError(f"{what}. The end of its log:\n{self.log_tail()}", kind="died")


def convert(workflow: Mapping[str, Any], object_info: Mapping[str, Any]) -> Prompt:
    """Turns a saved graph (UI form) into a prompt (API form), as the browser does.

    Raises:
        HostError: The graph names nodes that the host does not have.
    """
    from comfy_cli.workflow_to_api import convert_ui_to_api

    prompt: Prompt = convert_ui_to_api(dict(workflow), dict(object_info))
    unknown = sorted({node["class_type"] for node in prompt.values()} - set(object_info))
    if unknown:
        raise HostError(f"Unknown nodes: {', '.join(unknown)}", kind="invalid prompt")
    return prompt


def nodes_of(prompt: Prompt, class_type: str) -> list[dict[str, Any]]:
    """The inputs of each node of a class, to read or to change."""
    return [node["inputs"] for node in prompt.values() if node["class_type"] == class_type]


def _is_last(event: Event) -> bool:
    done = ("execution_success", "execution_error", "execution_interrupted")
    return event.kind in done


def _succeeded(entry: dict[str, Any]) -> dict[str, Any]:
    for kind, data in entry["status"]["messages"]:
        if kind == "execution_interrupted":
            raise HostError(
                f"{data.get('node_type')}: interrupted",
                kind="interrupted",
                node=data.get("node_type", ""),
                details=data,
            )
        if kind == "execution_error":
            raise HostError(
                f"{data['node_type']}: {data['exception_message'].strip()}",
                kind=data["exception_type"],
                node=data["node_type"],
                details=data,
            )
    return entry


def _refused(reply: Mapping[str, Any]) -> HostError:
    error = reply.get("error", {"message": "A part of the prompt is invalid."})
    lines = [f"{error['message']} {error.get('details', '')}".strip()]
    for node in reply.get("node_errors", {}).values():
        lines += [f"{node['class_type']}: {e['message']}: {e['details']}" for e in node["errors"]]
    return HostError("\n".join(lines), kind="invalid prompt", details=reply)


def _object(body: bytes) -> dict[str, Any]:
    content = json.loads(body or b"{}")
    assert isinstance(content, dict), "the host answers with JSON objects"
    return content


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _link(source: Path, target: Path) -> None:
    """Symlinks, or copies where the system forbids symlinks (Windows without developer mode)."""
    if target.is_symlink() or target.is_file():
        target.unlink()
    if target.exists():
        return
    try:
        target.symlink_to(source.resolve(), target_is_directory=source.is_dir())
    except OSError:
        copy: Callable[..., Any] = shutil.copytree if source.is_dir() else shutil.copyfile
        copy(source, target)
