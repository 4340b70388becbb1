"""A training as it was asked for: what decides it, where it is kept, and whether it is there."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from ....trainers.data.batches import planned_steps
from ....trainers.errors import SaveError
from ....trainers.models.architectures import ARCHITECTURES, Architecture
from ....trainers.models.precision import computes_in
from ....trainers.objective.timesteps import check_objective
from ....trainers.optimizers.processes import Processes, joined
from ....trainers.optimizers.sharded import check_sharding
from ....trainers.runs.folder import RunFolder, run_facts
from ....trainers.runs.kept.resumed import Source
from ....trainers.runs.kept.workflow import keep_workflow
from ....trainers.settings.run import RunConfig
from ....trainers.settings.store import ANEW, USE
from ..folders import find_run, runs_folder
from ..memory import device
from ..models.objective import objective_of
from ..models.stored.identity import clip_fingerprint, model_fingerprint, vae_fingerprint
from ..models.support import (
    check_clip,
    check_model,
    check_takes_controls,
    check_text_names,
    check_tread,
)
from ..models.tokenizer import check_takes_tokens, embeddings_of, encoder_names
from ..models.twin import check_quantize_base
from ..models.vae import check_vae
from ..workbench.outcome import captions_read
from .base import GraphNode, remember, remembered, served_without_base
from .graph import record
from .inputs import Sockets, check_wiring
from .progress import Reporter


@dataclass(frozen=True)
class Run:
    """One training as it was asked for, and where it is kept.

    Attributes:
        text_encoders: names of the base's.
        sockets: without class images where they have no weight.
        plan: of its memory and what `auto` chose by it, as run.json has it; see fitting.py.
        source: the state of another run that it begins with.
    """

    sockets: Sockets
    config: RunConfig
    architecture: Architecture
    text_encoders: tuple[str, ...]
    facts: Mapping[str, Any]
    folder: RunFolder
    reporter: Reporter
    plan: Mapping[str, Any] | None = None
    source: Source | None = None

    @functools.cached_property
    def graph(self) -> dict[str, Any] | None:
        """What of the graph made it."""
        return record(self.reporter.node)

    def describe(self, **how_it_went: Any) -> None:
        """Write run.json, once for all processes.

        Raises:
            SaveError: it cannot be written.
        """
        if self.processes.is_first:
            how_it_went |= {"processes": self.processes.count, "plan": self.plan}
            self.folder.describe({**self.facts, "graph": self.graph}, **how_it_went)
            self._keep_workflow()

    def note_graph(self) -> None:
        """Note the graph that takes the run from disk: in a run.json that lacks one, as those of
        earlier versions do, and as the page has it now."""
        if self.processes.is_first:
            with contextlib.suppress(SaveError):  # the run is there all the same
                self.folder.complete({"graph": self.graph})
                self._keep_workflow()

    def _keep_workflow(self) -> None:
        if workflow := self.reporter.node.workflow:
            with contextlib.suppress(SaveError):  # the run is the same without it
                keep_workflow(self.folder.path, workflow)

    @property
    def processes(self) -> Processes:
        """Those that train it together: the first of them writes what is in its folder."""
        return joined()

    @property
    def shown_path(self) -> str:
        """The run's folder as people write it."""
        return f"output/{self.folder.path.parent.name}/{self.folder.path.name}"

    @property
    def captions(self) -> list[str]:
        """All that prompts say in this run, but for what templates make of it."""
        classes = self.sockets.class_dataset
        of_classes = [picture.caption for picture in classes.pictures] if classes else []
        captions = [picture.caption for picture in self.sockets.dataset.pictures]
        return captions_read(self.config, captions, of_classes)

    @property
    def asked_steps(self) -> int:
        """How many steps the run is to have."""
        return planned_steps(self.sockets.dataset, self.config, self.processes.count)

    @property
    def kept_steps(self) -> int | None:
        """The length at which this run ended or would end; None where it is to start anew."""
        asked, store = self.asked_steps, self.config.store
        if store.if_run_exists == ANEW:
            return None
        return self.folder.stopped().get(asked, asked) if store.if_run_exists == USE else asked


# Told of each run before it trains; what one raises ends it. Without a page: see headless/look.py.
LOOKS: list[Callable[[Run], None]] = []


def make_run(sockets: Sockets, config: RunConfig, node: GraphNode) -> Run:
    """The run that these ask for.

    Raises:
        PersonalizeError: what is wired in does not go together.
    """
    check_wiring(sockets, config)
    reporter = Reporter(node)
    if not sockets.without_base:
        check_tread(config.training.tread_selection_ratio, sockets.model, sockets.num_controls)
    reporter.status("comparing with earlier runs")
    base = _base(sockets, node, config)
    if not sockets.without_base:
        if config.method == "lora" and config.own.train_text_encoder:
            record = ARCHITECTURES[base["architecture"]]
            check_text_names(sockets.clip, record, config.own.targets)
        check_objective(config.objective, objective_of(sockets.model))
        check_takes_controls(sockets.model, sockets.num_controls, sockets.dataset.name)
        if config.method == "textual_inversion":
            check_takes_tokens(sockets.clip)
    run = _run(sockets, config, base, reporter)
    _check_begins(run)
    if run.processes.shard and not (run.kept_steps and run.folder.has_result(run.kept_steps)):
        check_sharding(config)
    for look in LOOKS:
        look(run)
    return run


def needs_base(
    sockets: Sockets, config: RunConfig, node: GraphNode, made_of_base: Collection[int]
) -> bool:
    """Whether model, clip and vae must be loaded: for a training, or for what is wired.

    Args:
        sockets: as far as they are there yet; see base.py.
        made_of_base: the node's outputs that are made of model or clip, by their places.
    """
    _source(config)
    base = remembered(node)
    if base is None or node.is_wired(made_of_base):
        return True
    run = _run(sockets, config, base, Reporter(node))
    return run.kept_steps is None or not run.folder.has_result(run.kept_steps)


def _base(sockets: Sockets, node: GraphNode, config: RunConfig) -> dict[str, str]:
    """The architecture, and fingerprints of all that is wired in beside the pictures."""
    known = remembered(node)
    if known is not None and sockets.without_base:
        served_without_base(node)
        return known
    whole = config.changes_weights
    architecture = check_model(sockets.model, whole)
    check_clip(sockets.clip, sockets.model, config.own.trains_text, whole)
    check_quantize_base(config.training.quantize_base, sockets.model)
    check_vae(sockets.vae)
    base = known or {
        "architecture": architecture.name,
        "text_encoders": " ".join(encoder_names(sockets.clip)),
        "model": model_fingerprint(sockets.model),
        "clip": clip_fingerprint(sockets.clip, architecture, ()),
        "vae": vae_fingerprint(sockets.vae),
    }
    if source := node.base_source():
        remember(source, base)
    return base | {f"token {e.token}": e.fingerprint() for e in embeddings_of(sockets.clip)}


def _run(sockets: Sockets, config: RunConfig, base: Mapping[str, str], reporter: Reporter) -> Run:
    if not config.objective.prior_weight:
        sockets = dataclasses.replace(sockets, class_dataset=None)
    hashes = {name: value for name, value in base.items() if name != "architecture"}
    hashes["computes_in"] = computes_in(config, device())
    datasets = sockets.dataset, sockets.class_dataset, sockets.validation_dataset
    facts = run_facts(config, base["architecture"], hashes, *datasets)
    if source := _source(config):
        source.check_agrees(facts, planned_steps(sockets.dataset, config, joined().count))
        facts["resumed"] = source.fact
    folder = RunFolder.of(runs_folder(), sockets.dataset.name, facts)
    architecture = ARCHITECTURES[base["architecture"]]
    encoders = tuple(base["text_encoders"].split())
    return Run(sockets, config, architecture, encoders, facts, folder, reporter, source=source)


def _source(config: RunConfig) -> Source | None:
    """The state of another run that the settings name."""
    store = config.store
    if not store.resume_from.strip():
        return None
    folder = find_run(
        store.resume_from, "resume_from", "Write the name of such a folder, or leave it empty."
    )
    return Source.of(folder, store.resume_step)


def _check_begins(run: Run) -> None:
    """See that the state which the run begins with is there, before anything is encoded."""
    source, folder = run.source, run.folder
    if source is None or (run.kept_steps and folder.has_result(run.kept_steps)):
        return
    own = run.config.store.if_run_exists != ANEW and folder.state_steps
    if not own and source.step not in source.folder.state_steps:
        raise source.missing()
