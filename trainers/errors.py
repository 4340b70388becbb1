"""What can go wrong that the user can mend.

    PersonalizeError (ValueError)
    ├── SettingsError           a setting is outside what is allowed
    ├── DatasetError            pictures, captions, masks or control images that cannot be used
    ├── UnsupportedModelError   a model that cannot be trained, or not measure what was asked
    ├── UnavailableError        allowed, but not possible on this machine
    ├── NonFiniteLossError      the loss became NaN or infinite
    ├── RecipeError             a run.json, or another file that says what to train, cannot be used
    ├── AdapterError            a LoRA, or the file of one, that cannot be used
    ├── SaveError               a result could not be written
    ├── RunError                a run on disk, or a step of it, that cannot be used or changed
    ├── HubError                the Hugging Face Hub refused, or could not be reached
    └── ProcessesError          one of several processes that train together was lost

Every message has three parts in two lines: what was got and where; what is allowed; what to do.
Running out of memory stays torch's own error, so that a host can still react to it.
"""

from __future__ import annotations


class PersonalizeError(ValueError):
    """Any error that its reader can mend."""


class SettingsError(PersonalizeError):
    """One or more settings are not allowed; all of them are listed in `problems`."""

    def __init__(self, problems: tuple[str, ...]) -> None:
        self.problems = problems
        listed = "; ".join(problems)
        super().__init__(f"Settings: {listed}.\nChange them on the node and queue again.")


class DatasetError(PersonalizeError):
    """Pictures, captions, masks or control images cannot be used; all of them are listed."""


class UnsupportedModelError(PersonalizeError):
    """The base model cannot be trained, or a model cannot measure what was asked."""


class UnavailableError(PersonalizeError):
    """What was asked for is allowed, but this machine lacks a package or a capability."""


class NonFiniteLossError(PersonalizeError):
    """The loss became NaN or infinite."""


class AdapterError(PersonalizeError):
    """LoRAs, files of them, or models that cannot be used together or made into one."""


class RecipeError(PersonalizeError):
    """A run.json or a graph cannot be run, or does not find what it names as it was."""


class RunError(PersonalizeError):
    """A run on disk is not there, lacks what is asked of it, is at work, or must stay as it is."""


class SaveError(PersonalizeError):
    """A result could not be written; nothing half-written was left behind."""


class HubError(PersonalizeError):
    """The Hugging Face Hub refused what was asked, or could not be reached."""


class ProcessesError(PersonalizeError):
    """One of several processes that train together ended, or cannot be reached."""
