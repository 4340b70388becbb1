"""Nodes that share over the Hugging Face Hub, and fetch from there."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..host.folders import PLACES

CATEGORY = "personalize/hub"
TOKEN = "huggingface_hub's own token is used (hf auth login, or HF_TOKEN); never write it here."


class PushToHub(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PersonalizePushToHub",
            display_name="Push to Hub",
            category=CATEGORY,
            description=(
                "Sends a LoRA, a learned word or a checkpoint to a repository on the Hugging Face "
                f"Hub, private unless you say otherwise, with a model card. {TOKEN}"
            ),
            search_aliases=["huggingface", "upload lora", "share lora", "model card", "publish"],
            is_output_node=True,
            inputs=[
                io.String.Input(
                    "path",
                    tooltip=(
                        "The file: wire path of Save LoRA or Save Embedding here, or write its "
                        "name inside output/, such as checkpoints/dog_00001_.safetensors."
                    ),
                ),
                io.String.Input(
                    "repo_id",
                    tooltip="owner/name, or a name of your own; made if it is not there.",
                ),
                io.Boolean.Input(
                    "private",
                    default=True,
                    tooltip="Only you see the repository. On, one that is public is refused.",
                ),
                io.String.Input(
                    "base_model",
                    optional=True,
                    tooltip=(
                        "The base model's id on the Hub, such as stabilityai/sdxl-turbo: the card "
                        "links to it and takes its licence."
                    ),
                ),
                io.String.Input(
                    "run",
                    optional=True,
                    force_input=True,
                    tooltip=(
                        "The run of the training node: the card tells its settings and shows its "
                        "last previews."
                    ),
                ),
                *_of_the_card(),
            ],
            outputs=[
                io.String.Output(display_name="url", tooltip="The repository's page."),
                io.String.Output(
                    display_name="revision", tooltip="The commit's hash, which pins it."
                ),
            ],
        )

    @classmethod
    def execute(cls, path: str, repo_id: str, run: str = "", **choices: Any) -> io.NodeOutput:
        from ..host.hub import Choices, push_file

        pushed = push_file(path, repo_id, run or "", Choices(**choices))
        return io.NodeOutput(pushed.url, pushed.commit, ui={"text": [pushed.url]})


def _of_the_card() -> list[io.Input]:
    shared: dict[str, Any] = {"optional": True, "advanced": True}
    return [
        io.String.Input(
            "instance_prompt",
            tooltip=(
                "What calls the subject in a prompt, for the card. Empty: the learned word, or "
                "the caption that all pictures share."
            ),
            **shared,
        ),
        io.String.Input(
            "license",
            tooltip="The Hub's word for it, such as apache-2.0. Empty: that of base_model.",
            **shared,
        ),
        io.Boolean.Input(
            "previews", default=True, tooltip="The run's last previews in the card.", **shared
        ),
        io.Boolean.Input(
            "captions",
            default=False,
            tooltip=(
                "The captions of all pictures in the card, and in the file if it has them. The "
                "pictures are never sent."
            ),
            **shared,
        ),
        io.Boolean.Input(
            "model_card",
            default=True,
            tooltip="Off leaves the repository's README.md as it is.",
            **shared,
        ),
        io.String.Input("commit_message", tooltip="Empty: Add and the file's name.", **shared),
        io.Boolean.Input(
            "workflow",
            default=False,
            tooltip=(
                "Send the graph along that is in the file (Save Checkpoint always puts it there), "
                "with your prompts and names of folders."
            ),
            **shared,
        ),
    ]


class FetchFromHub(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PersonalizeFetchFromHub",
            display_name="Fetch from Hub",
            category=CATEGORY,
            description=(
                "Brings a model or a data set of the Hugging Face Hub, at one commit, into a "
                f"folder of ComfyUI. Goes on where it was interrupted. {TOKEN}"
            ),
            search_aliases=["huggingface", "download model", "download dataset", "base model"],
            is_output_node=True,  # so that it can be queued alone
            inputs=[
                io.Combo.Input(
                    "into",
                    options=list(PLACES),
                    tooltip="The models folder to put it in; input is for a data set's pictures.",
                ),
                io.String.Input("repo_id", tooltip="owner/name, from the page's address."),
                io.String.Input(
                    "revision",
                    tooltip=(
                        "A commit's hash of 40 digits, or a tag. A branch such as main is refused, "
                        "since it changes; the message says where it is now."
                    ),
                ),
                io.String.Input(
                    "files",
                    optional=True,
                    tooltip=(
                        "A model: the file's name, or a pattern that fits one, such as "
                        "*fp16.safetensors; empty if there is one. A data set: patterns divided "
                        "by commas, such as train/*; empty is all pictures and captions."
                    ),
                ),
            ],
            outputs=[
                io.AnyType.Output(
                    display_name="name",
                    tooltip="As loaders and Training Images (Folder) list it: wire it there.",
                )
            ],
        )

    @classmethod
    def execute(cls, into: str, repo_id: str, revision: str, files: str = "") -> io.NodeOutput:
        from ..host.hub import fetch_files

        return io.NodeOutput(fetch_files(into, repo_id, revision, files))
