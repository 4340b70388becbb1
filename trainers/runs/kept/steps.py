"""The steps of a run of which something is kept: results, and states, each as a result of its step.

A state has the numbers that were trained. What of them a result would hold is in it too, under
"learned":

    tensors, tokens, metadata     as in Result; in the place of a tensor that is one of the
                                  parameters, in fp32, that one's number
    names, tokens, metadata       of DreamBooth: keys of the first parameters, or of their average
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...errors import RunError
from ...optimizers.average import kept_average
from ..fingerprint import config_of
from ..folder import Result, RunFolder
from ..story import read_metrics

LAST, BEST = "last", "best"
LOOKED_AT = 16
SMOOTHING_STEPS = 20  # the loss of one step is mostly the luck of its timesteps


def told_once(learned: Mapping[str, Any], parameters: Sequence[Tensor]) -> dict[str, Any]:
    """What `Training.learned` gave, with numbers for those tensors that are parameters in fp32."""
    if "tensors" not in learned:
        return dict(learned)
    alike: dict[Any, list[int]] = {}
    for number, parameter in enumerate(parameters):
        alike.setdefault(_look(parameter), []).append(number)

    def told(tensor: Tensor) -> Tensor | int:
        for number in alike.get(_look(tensor), ()):
            if torch.equal(parameters[number].detach().to("cpu", torch.float32), tensor):
                return number
        return tensor

    return {**learned, "tensors": {key: told(value) for key, value in learned["tensors"].items()}}


def _look(tensor: Tensor) -> tuple[Any, ...]:
    """What tells most tensors apart: the shape and a few of the numbers."""
    first = tensor.detach().flatten()[:LOOKED_AT]
    return (*tensor.shape, *first.float().tolist())


def kept_steps(folder: RunFolder) -> list[int]:
    """The steps of which a result or a state is kept."""
    return sorted({*folder.result_steps, *folder.state_steps})


def chosen_step(folder: RunFolder, asked: str) -> int:
    """The kept step that `asked` means: last, best or a number.

    Raises:
        RunError: nothing is kept, or not that.
    """
    steps, name = kept_steps(folder), folder.path.name
    if not steps:
        raise RunError(
            f"Run '{name}' has neither a result nor a state; allowed: runs that came to an end, or "
            "to their first state.\nLet the training finish, or end it with Stop and keep."
        )
    text = asked.strip().lower()
    if text == LAST:
        return steps[-1]
    if text == BEST:
        return best_step(folder, steps)
    if text.isdecimal() and int(text) in steps:
        return int(text)
    raise RunError(
        f"step is {asked[:40]!r}; allowed for run '{name}': {LAST}, {BEST}, "
        f"{', '.join(map(str, steps))}.\nChoose one of these. keep_states and state_every of Run "
        "Settings decide which states a run keeps."
    )


def best_step(folder: RunFolder, steps: Sequence[int]) -> int:
    """The one of `steps` with the lowest loss of the held-out pictures, the first of equals.

    It is the loss at the last validation up to the step. Where no picture is held out, it is the
    mean loss of the last SMOOTHING_STEPS steps.
    """
    rows = read_metrics(folder.path)
    watched = any("validation" in row for row in rows)

    def loss(step: int) -> float:
        before = [row for row in rows if row["step"] <= step]
        if watched:
            return next((r["validation"] for r in reversed(before) if "validation" in r), _NONE)
        last = [row["loss"] for row in before[-SMOOTHING_STEPS:]]
        return sum(last) / len(last) if last else _NONE

    return min(steps, key=loss)


_NONE = float("inf")


def result_at(folder: RunFolder, step: int) -> Result:
    """What the run had learned after so many steps, from its result or else from its state.

    A result is what the run handed out, which is the best step up to its end where hand_out says
    so; a state is of its own step. DreamBooth's result has the weights that changed, in the base's
    dtypes; its state gives all of them, in those that they train in.

    Raises:
        RunError: it cannot be read, or an earlier version wrote the state.
    """
    if folder.has_result(step) and (result := folder.result(step)):
        return result
    found = folder.state_of(step, mapped=True)
    if found is None and step not in kept_steps(folder):
        raise RunError(
            f"run: what was kept of step {step} of '{folder.path.name}' is gone: a run at work "
            "deletes its older states.\nQueue again, or raise keep_states of Run Settings."
        )
    if found is None:
        raise RunError(
            f"run: what is kept of step {step} in '{folder.path.name}' cannot be read; allowed: "
            "whole files.\nDelete that file and train again, or choose another step or run."
        )
    state, metrics = found
    learned = state.get("learned") or {}
    if "tokens" not in learned:
        raise RunError(
            f"run: the state of step {step} in '{folder.path.name}' is enough to go on from, but "
            "does not say what a result of it would be: an earlier version wrote it, or several "
            "processes with --shard.\nChoose a step with a result, or name the run in resume_from."
        )
    # Copies, so that the file can go.
    tensors = {key: tensor.clone() for key, tensor in _tensors(folder, state, learned).items()}
    tokens = {
        token: {name: rows.clone() for name, rows in by.items()}
        for token, by in learned["tokens"].items()
    }
    return Result(step, tensors, learned["metadata"], tokens, metrics)


def steps_with_room(folder: RunFolder, most: int) -> tuple[list[int], int]:
    """At most so many of the steps that `result_at` can give, and how many states are left out.

    Results are all there, even if they are more; of states as many as have room, evenly spread.
    """
    results = folder.result_steps
    states = [s for s in folder.state_steps if s not in results and _is_told(folder, s)]
    room = max(0, most - len(results))
    shown = states
    if room < len(states):  # with the last one
        shown = [states[(number + 1) * len(states) // room - 1] for number in range(room)]
    return sorted([*results, *shown]), len(states) - len(shown)


def _is_told(folder: RunFolder, step: int) -> bool:
    """Whether the state of a step can be read and says what a result of it would be."""
    found = folder.state_of(step, mapped=True)
    return found is not None and "tokens" in (found[0].get("learned") or {})


def _tensors(
    folder: RunFolder, state: Mapping[str, Any], learned: Mapping[str, Any]
) -> Mapping[str, Tensor]:
    if "tensors" in learned:
        parameters = state["parameters"]
        return {
            key: parameters[value].float() if isinstance(value, int) else value
            for key, value in learned["tensors"].items()
        }
    names = learned["names"]
    values = state["parameters"][: len(names)]
    if (average := state["method"].get("average")) is not None:
        values = kept_average(average, values, config_of(folder.facts).own.ema_decay)
    return dict(zip(names, values, strict=True))
