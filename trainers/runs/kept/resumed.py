"""A new run that begins with a state of another one: `resume_from` of Run Settings.

    run.json: "resumed": {"fingerprint": of the other run, "step": of its state}

Its step counter, and so all that is drawn at random, goes on where the state was; its metrics are
of its own steps. What settings decide is as in the new run: rates, schedule, decay. If none differs
it makes the very run that the other one was, to the bit on a CPU.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import RunError
from ...loop import Training
from ...optimizers.sharded import Part
from ...settings.field import raise_problems
from ...settings.run import RunConfig
from ..fingerprint import config_of
from ..folder import RunFolder

# What a state's numbers are of, by the group of settings.
MUST_AGREE: Mapping[str, tuple[str, ...]] = {
    "training": ("optimizer",),
    "own": (
        "rank", "alpha", "targets", "variant", "rank_stabilized", "initialization", "lokr_factor",
        "adapter_weights", "weights", "fused_backward", "train_text_encoder", "train_token",
        "token", "vectors",
    ),
}  # fmt: skip
# What decides the loss of held-out pictures, beside the seed.
OF_VALIDATION = ("validation", "objective")
WATCHED = ("dataset", "validation_dataset")
IN_OTHER_PARTS = "rounding by pieces"  # of what was mended: states are of other parts since
# Of an optimizer's groups: what settings say. All else in them was found on the way.
OF_SETTINGS = (
    "lr", "initial_lr", "weight_decay", "warmup_steps", "relative_step", "scale_parameter",
    "warmup_init",
)  # fmt: skip
TOKEN = "token "  # how base_model names a learned token


@dataclass(frozen=True)
class Source:
    """What a run begins with.

    Attributes:
        facts: of the other run, as its run.json has them.
    """

    folder: RunFolder
    step: int
    facts: Mapping[str, Any]

    @classmethod
    def of(cls, folder: RunFolder, step: int) -> Source:
        """The state of a run after so many steps; 0 is its last one.

        Raises:
            RunError: it has none. One that is named by its step may be gone: a run that began with
                it and came to its end needs it no more.
        """
        if not step and not folder.state_steps:
            raise RunError(
                f"resume_from: run '{folder.path.name}' has no state; allowed: runs that kept one "
                "(keep_states).\nName another run, or the step that it once was in resume_step "
                "if the new run is on disk already."
            )
        return cls(folder, step or folder.state_steps[-1], folder.facts)

    @property
    def fact(self) -> dict[str, Any]:
        """What run.json of the new run says, and what makes it another run."""
        return {"fingerprint": self.folder.fingerprint, "step": self.step}

    def check_agrees(self, facts: Mapping[str, Any], asked_steps: int) -> None:
        """See that a run with these facts can begin with it.

        Raises:
            SettingsError: with all that differs.
        """
        name = self.folder.path.name
        if facts["method"] != self.facts.get("method"):
            raise_problems(
                [f"resume_from '{name}' is a run of {self.facts.get('method')}; allowed on this "
                 f"node: runs of {facts['method']}"]
            )  # fmt: skip
        if self._is_earlier(facts):
            raise_problems(
                [f"resume_from '{name}' is a run of an earlier version, whose states are in other "
                 "parts; allowed: runs of this version"]
            )  # fmt: skip
        found = [
            f"{setting} is {now!r}, but the run in resume_from, '{name}', has {was!r}; allowed: "
            f"{was!r}, or another run"
            for setting, was, now in self._differences(facts)
        ]
        if other := self._other_base(facts):
            found.append(
                f"{' and '.join(other)} of the base differ{'s' * (len(other) == 1)} from those of "
                f"the run in resume_from, '{name}'; allowed: the base that it was trained on"
            )
        if asked_steps <= self.step:
            found.append(
                f"the training has {asked_steps} steps, but begins at step {self.step} of "
                f"'{name}'; allowed: {self.step + 1} steps and more, or an earlier resume_step"
            )
        raise_problems(found)

    def _is_earlier(self, facts: Mapping[str, Any]) -> bool:
        was, now = self.facts, facts
        return was.get("format") != now["format"] or (
            IN_OTHER_PARTS in now.get("mended", ()) and IN_OTHER_PARTS not in was.get("mended", ())
        )

    def _watches_the_same(self, config: RunConfig, facts: Mapping[str, Any]) -> bool:
        """Whether the loss of the best step so far can be compared with those to come."""
        before = config_of(self.facts)
        return before.training.seed == config.training.seed and all(
            (
                *(getattr(before, name) == getattr(config, name) for name in OF_VALIDATION),
                # As run.json has them: lists, where there are tuples before.
                *(self.facts[name] == json.loads(json.dumps(facts[name])) for name in WATCHED),
            )
        )

    def _differences(self, facts: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
        before = config_of(self.facts)
        for group, names in MUST_AGREE.items():
            for name in names:
                was, now = getattr(getattr(before, group), name, None), facts[group].get(name)
                if was != now:
                    yield name, was, now

    def _other_base(self, facts: Mapping[str, Any]) -> list[str]:
        was, now = self.facts["base_model"], facts["base_model"]
        own = facts["own"]
        names = ["model", "text_encoders"]
        if facts["method"] == "textual_inversion" or own.get("train_text_encoder"):
            names.append("clip")
        found = [name for name in names if was.get(name) != now.get(name)]
        tokens = [{key for key in base if key.startswith(TOKEN)} for base in (was, now)]
        if own.get("train_token") and tokens[0] != tokens[1]:
            found.append("learned tokens")
        return found

    # -- beginning ------------------------------------------------------------

    def begin(self, training: Training, config: RunConfig, facts: Mapping[str, Any]) -> None:
        """Put a training that has not begun where the other run was.

        Raises:
            RunError: the state is gone, cannot be read, or is of other layers.
        """
        found = self.folder.state_of(self.step)
        if found is None:
            raise self.missing()
        state, start = found[0], training.circumstances()
        shapes = [kept.shape for kept in state["parameters"]]
        if shapes != [p.of.shape if isinstance(p, Part) else p.shape for p in training.parameters]:
            raise RunError(
                f"resume_from: the state of step {self.step} in '{self.folder.path.name}' is of "
                "other layers than this training's; allowed: those that it was trained with.\n"
                "Name another run."
            )
        before = config_of(self.facts)
        same_batches = before.training.batch_size == config.training.batch_size
        rates = training.rates(self.step)
        both_scale = state["scaler"] and start["scaler"]
        training.load_state({
            **state,
            "batch_size": state["batch_size"] if same_batches else start["batch_size"],
            "optimizer": _with_settings(state["optimizer"], start["optimizer"], rates),
            "schedule": {
                **start["schedule"],
                "last_epoch": self.step, "_step_count": self.step + 1, "_last_lr": rates,
            },
            "scaler": (state if both_scale else start)["scaler"],
            "best": state["best"] if self._watches_the_same(config, facts) else None,
        })  # fmt: skip

    def missing(self) -> RunError:
        """The error that says that the state is not there."""
        steps = ", ".join(map(str, self.folder.state_steps)) or "none"
        return RunError(
            f"resume_from: run '{self.folder.path.name}' has no state of step {self.step} that can "
            f"be read; allowed in resume_step: {steps}, or 0 for the last.\nkeep_states and "
            "old_states_gb of Run Settings decide how many states stay."
        )


def _with_settings(kept: Any, start: Any, rates: Sequence[float]) -> Any:
    """A state_dict, at any depth, with what settings decide as it is at the start of this run."""
    if not isinstance(kept, Mapping):
        return kept
    changed: dict[str, Any] = {}
    for key, value in kept.items():
        if key == "rates":
            changed[key] = list(rates)
        elif key == "param_groups":
            groups = zip(value, start[key], rates, strict=True)
            changed[key] = [_group(*group) for group in groups]
        elif isinstance(value, Mapping) and isinstance(start.get(key), Mapping) and key != "state":
            changed[key] = _with_settings(value, start[key], rates)
        else:
            changed[key] = value
    return changed


def _group(kept: Mapping[str, Any], start: Mapping[str, Any], rate: float) -> dict[str, Any]:
    settings = {name: start[name] for name in OF_SETTINGS if name in start}
    return {**kept, **settings, "lr": rate}
