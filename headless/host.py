"""ComfyUI's modules without its server: the only place here that knows ComfyUI.

Its main.py is imported, which reads its arguments and sets up folders, devices and memory as ever.
Its server object is made, since nodes and packs speak to it, but it never listens; what is sent to
pages goes to the terminal. Its executor runs the graph, so that a node runs as in a page.
"""

from __future__ import annotations

import asyncio
import difflib
import importlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..trainers.errors import PersonalizeError, RecipeError
from .recipe import Nodes, Recipe

PACK = Path(__file__).absolute().parents[1]
NAME = __name__.partition(".")[0]  # of its modules: as the host names them, see __main__.py
ASKED_TO_END = (signal.SIGINT, signal.SIGTERM)
MOST_CHARACTERS = 300  # of what the host says of an input
_signals: list[int] = []  # that asked to end
Say = Callable[[str], None]
Count = Callable[[int, int], None]


def find_comfyui(asked: Path | None) -> Path:
    """The ComfyUI that was asked for, or the one that this pack lies in.

    Raises:
        RecipeError: there is none.
    """
    comfyui = (asked or PACK.parents[1]).absolute()
    if (comfyui / "main.py").is_file() and (comfyui / "comfy").is_dir():
        return comfyui
    told = "is no ComfyUI" if asked else "is no ComfyUI, though this pack lies in it"
    raise RecipeError(
        f"'{comfyui}' {told}: it has no main.py.\nName the folder of yours: --comfyui PATH."
    )


def start(comfyui: Path, arguments: Sequence[str], say: Say, count: Count) -> None:
    """Import the host's modules, with arguments as main.py takes them.

    Args:
        say: is told what a node would show in its body.
        count: is told (done, total) of the node's bar.
    """
    sys.path.insert(0, str(comfyui))
    sys.argv = [str(comfyui / "main.py"), "--disable-all-custom-nodes", *arguments]
    if "--verbose" not in arguments:
        sys.argv += ["--verbose", "WARNING"]
    import comfy.options

    comfy.options.enable_args_parsing()
    from comfy.cli_args import args

    args.front_end_root = str(comfyui)  # no page is served, so its packages need not be there
    # What main.py does only where it is the program itself.
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"):
        if args.cuda_device is not None:
            os.environ[name] = str(args.cuda_device)
    if args.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    importlib.import_module("cuda_malloc")
    importlib.import_module("main")
    _quiet("--verbose" in arguments)
    _make_server(say, count)
    _load_pack(PACK)
    for one in ASKED_TO_END:
        signal.signal(one, _end)


def output_folder(comfyui: Path, arguments: Sequence[str]) -> Path:
    """The host's output folder, with arguments as main.py takes them; little of it is loaded."""
    sys.path.insert(0, str(comfyui))
    sys.argv = [str(comfyui / "main.py"), *arguments]
    import comfy.options

    comfy.options.enable_args_parsing()
    import folder_paths
    from comfy.cli_args import args

    return Path(args.output_directory or folder_paths.get_output_directory()).absolute()


def join(shard: bool) -> bool:
    """Meet the processes that a launcher started with this one; whether this is to be seen.

    Args:
        shard: share the denoiser's weights out among them.

    Raises:
        ProcessesError: they do not find each other.
    """
    from ..nodes.host.memory import device
    from ..trainers.optimizers import processes

    return processes.join(device().type == "cpu", shard).is_first


def leave() -> None:
    """Part from those that this process joined."""
    from ..trainers.optimizers import processes

    processes.leave()


def load_nodes(recipe: Recipe, packs: Sequence[str]) -> None:
    """See that there is every node of the recipe: the host's own, ours, and of the packs named.

    Raises:
        RecipeError: a pack or a node is not there.
    """
    import folder_paths

    nodes = _nodes()

    wanted = {node["class_type"] for node in recipe.nodes.values()}
    if not wanted <= nodes.NODE_CLASS_MAPPINGS.keys():
        asyncio.run(nodes.init_builtin_extra_nodes())
    for name in dict.fromkeys((*packs, *recipe.packs)):
        folders = [Path(p, name) for p in folder_paths.get_folder_paths("custom_nodes")]
        found = [folder for folder in folders if folder.exists() and name]
        if not found:
            raise RecipeError(
                f"The node pack '{name}' is not in {', '.join(str(f.parent) for f in folders)}.\n"
                "The graph has nodes of it: install it there."
            )
        _load_pack(found[0])
    if missing := sorted(wanted - nodes.NODE_CLASS_MAPPINGS.keys()):
        raise RecipeError(
            f"The graph has nodes that ComfyUI and this pack do not have: {', '.join(missing)}.\n"
            "Name the folder in custom_nodes that has them: --custom-nodes NAME."
        )


def run(recipe: Recipe) -> BaseException | None:
    """Run the recipe's training nodes; what ended them early, if anything did.

    Raises:
        RecipeError: the host refuses the graph.
    """
    import execution

    class Executor(execution.PromptExecutor):  # type: ignore[misc]
        ended_by: BaseException | None = None

        def handle_execution_error(self, *facts: Any) -> None:
            self.ended_by = facts[-1]
            super().handle_execution_error(*facts)

    import server

    prompt: Nodes = {key: dict(node) for key, node in recipe.nodes.items()}
    targets = list(recipe.targets)
    _, error, _, problems = asyncio.run(execution.validate_prompt("headless", prompt, targets))
    if error or problems:
        raise _refused(error, problems)
    executor = Executor(
        server.PromptServer.instance,
        cache_type=execution.CacheType.CLASSIC,
        cache_args={"lru": 0, "ram": 0, "ram_inactive": 0},
    )
    executor.execute(prompt, "headless", {}, targets)
    return executor.ended_by


def interrupt() -> type[BaseException]:
    """What a node raises when it is cancelled."""
    import comfy.model_management

    kind: type[BaseException] = comfy.model_management.InterruptProcessingException
    return kind


def ended_by_signal() -> int | None:
    """The signal that asked to end, if one did."""
    return _signals[0] if _signals else None


# -- as the host's own start does it ------------------------------------------


def _make_server(say: Say, count: Count) -> None:
    import comfy.utils
    import server

    from ..nodes.host.runs.pages import STATUS

    class Silent(server.PromptServer):  # type: ignore[misc]
        def send_sync(self, event: Any, data: Any, sid: str | None = None) -> None:
            if event == STATUS:
                say(data["text"])

    Silent(asyncio.new_event_loop()).client_id = None

    def hook(done: int, total: int, preview: Any, **more: Any) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        count(done, total)

    comfy.utils.set_progress_bar_global_hook(hook)


def _load_pack(folder: Path) -> None:
    nodes = _nodes()

    before = set(nodes.NODE_CLASS_MAPPINGS)
    if not asyncio.run(nodes.load_custom_node(str(folder), before)):
        raise RecipeError(
            f"The node pack '{folder.name}' cannot be loaded: see above.\nMend that first."
        )


def _quiet(all_of_it: bool) -> None:
    """Leave out what the host says of itself, and of errors that are told at the end."""

    def shown(record: logging.LogRecord) -> bool:
        own = record.name.startswith(NAME)
        return record.module != "execution" and (
            all_of_it or own or record.levelno >= logging.WARNING
        )

    root = logging.getLogger()
    root.setLevel(min(root.level, logging.INFO))
    for handler in root.handlers:
        handler.setLevel(min(handler.level, logging.INFO))
        handler.addFilter(shown)


def _end(number: int, frame: Any) -> None:
    nodes = _nodes()

    _signals.append(number)
    nodes.interrupt_processing()  # between two steps the training sees it, and writes its state
    for one in ASKED_TO_END:
        signal.signal(one, signal.SIG_DFL)  # a second one ends it at once


def _nodes() -> Any:
    return importlib.import_module("nodes")  # the host's, not ours


def _refused(error: Any, problems: Mapping[str, Any]) -> PersonalizeError:
    if not problems:
        return RecipeError(f"ComfyUI refuses the graph: {error['message']}\nMend it in a page.")
    lines = [
        f"{node['class_type']}: {_problem(problem)}"
        for node in problems.values()
        for problem in node["errors"]
    ]
    return RecipeError(
        f"ComfyUI refuses the graph: {'; '.join(lines)}.\n"
        "Put what is missing into its folders, or change the file."
    )


def _problem(problem: Mapping[str, Any]) -> str:
    told = problem.get("extra_info") or {}
    if problem["type"] == "value_not_in_list":
        kind, *more = told.get("input_config") or [[]]
        options = kind if isinstance(kind, list) else (more[0] if more else {}).get("options", [])
        name, value = told.get("input_name"), told.get("received_value")
        near = difflib.get_close_matches(str(value), list(map(str, options)), 1, cutoff=0.5)
        return f"{name} is {value!r}, which is not there" + (
            f"; near it: {near[0]}" if near else ""
        )
    text = f"{problem['message']}: {problem['details']}".replace("\n", " ").rstrip(". ")
    return text[:MOST_CHARACTERS]
