"""The loss: noise, timesteps, weights, and where prior preservation comes from.

Imports no torch: nodes build their widgets from these fields, scripts read them, and run.json
stores them. Sources: A = ai-toolkit, D = diffusers' training scripts, K = kohya sd-scripts,
O = OneTrainer, P = the method's paper.
"""

from __future__ import annotations

from dataclasses import dataclass

from .field import Settings, setting

CLASS_IMAGES, TEACHER, PRESERVE = "class images", "teacher", "output preservation"
PRIORS = (CLASS_IMAGES, TEACHER, PRESERVE)
AUTO, UNIFORM, LOGIT_NORMAL = "auto", "uniform", "logit_normal"
SHIFT, FLUX_SHIFT = "shift", "flux_shift"


@dataclass(frozen=True)
class ObjectiveConfig(Settings):
    """The loss: noise, timesteps, weights."""

    min_snr_gamma: float = setting(
        0.0,
        "Caps the weight of timesteps with little noise (min-SNR); 5 is the paper's choice, 0 is "
        "off.",
        min=0.0, max=100.0, step=0.1, source="P arXiv 2303.09556",
    )  # fmt: skip
    noise_offset: float = setting(
        0.0,
        "Adds a little noise that is constant over each channel, so that very dark and very "
        "bright pictures can be learned; 0.05 is usual.",
        min=0.0, max=1.0, step=0.005, source="K 0.0357 for SDXL",
    )  # fmt: skip
    caption_dropout: float = setting(
        0.0,
        "Share of samples trained with an empty caption; keeps guidance (CFG) working in long "
        "runs.",
        min=0.0, max=1.0, step=0.01,
    )  # fmt: skip
    timestep_min: int = setting(
        0, "Lowest timestep that is trained, in thousandths: 0 is almost no noise. For flow "
        "matching that is the share of noise.",
        min=0, max=999,
    )  # fmt: skip
    timestep_max: int = setting(
        999, "Highest timestep that is trained, in thousandths: 999 is almost only noise.",
        min=0, max=999,
    )  # fmt: skip
    prior_weight: float = setting(
        1.0,
        "Weight of the class images in the loss, if there are any (prior preservation); 0 leaves "
        "them out.",
        min=0.0, max=100.0, step=0.05, source="P DreamBooth arXiv 2208.12242; D, K 1.0",
    )  # fmt: skip

    prior: str = setting(
        CLASS_IMAGES,
        "Where prior preservation comes from. class images: the class_dataset, if one is wired. "
        "teacher: no pictures; before training, the base model itself says what it predicts for "
        "the class prompt, and training holds on to that. output preservation: the same for a "
        "LoRA, asked anew in each step with the LoRA off, on the very noise that it trains on.",
        choices=PRIORS, source="A diff_output_preservation",
    )  # fmt: skip
    class_prompt: str = setting(
        "",
        "What is kept as it is, such as 'a photo of a dog'. For prior teacher and output "
        "preservation.",
    )  # fmt: skip
    prior_samples: int = setting(
        100,
        "Predictions that the teacher makes before training: each costs one forward pass, and "
        "memory for two latents.",
        min=1, max=100_000, source="D 100 class images",
    )  # fmt: skip

    timestep_sampling: str = setting(
        AUTO,
        "How often each timestep trains. auto: uniform for models that predict noise or v, "
        "logit_normal for flow matching. logit_normal (sigmoid): mostly those in the middle. "
        "shift: more of those with much noise, by discrete_flow_shift. flux_shift: the same, by "
        "the resolution.",
        choices=(AUTO, UNIFORM, LOGIT_NORMAL, SHIFT, FLUX_SHIFT),
        source="P arXiv 2403.03206; K; D logit_normal for flow",
    )  # fmt: skip
    logit_mean: float = setting(
        0.0, "Middle of logit_normal: above 0 trains more of those with much noise.",
        min=-5.0, max=5.0, step=0.05, source="D 0",
    )  # fmt: skip
    logit_std: float = setting(
        1.0, "Width of logit_normal: 1 is usual, more is nearer to uniform.",
        min=0.05, max=5.0, step=0.05, source="D 1; K sigmoid_scale",
    )  # fmt: skip
    discrete_flow_shift: float = setting(
        0.0,
        "For timestep_sampling shift: 1 shifts nothing, 3 is usual at 1024 px. 0: as the model's "
        "own sampler does.",
        min=0.0, max=100.0, step=0.05, source="K",
    )  # fmt: skip

    caption_prefix: str = setting(
        "", "Put in front of every caption, such as a trigger word and a comma.", source="K",
    )  # fmt: skip
    shuffle_caption: bool = setting(
        False, "Train the tags of a caption, which commas divide, in several orders.", source="K",
    )  # fmt: skip
    keep_tokens: int = setting(
        0, "So many tags in front are neither shuffled nor left out.", min=0, max=1000, source="K",
    )  # fmt: skip
    caption_tag_dropout_rate: float = setting(
        0.0, "Share of the tags that is left out each time.", min=0.0, max=1.0, step=0.01,
        source="K",
    )  # fmt: skip
    enable_wildcard: bool = setting(
        False,
        "In captions, {a|b} is one of them at random, and so is one of several lines. Off: braces "
        "are text, lines are joined.",
        source="K",
    )  # fmt: skip
    caption_variants: int = setting(
        10, "How many texts are drawn of each caption, if any of the five above draws.",
        min=2, max=1000,
    )  # fmt: skip

    def problems(self) -> list[str]:
        problems = []
        if self.timestep_min > self.timestep_max:
            problems.append(
                f"timestep_min is {self.timestep_min}, above timestep_max {self.timestep_max}; "
                "allowed: 0 <= timestep_min <= timestep_max <= 999"
            )
        if (self.uses_teacher or self.preserves_output) and not self.class_prompt.strip():
            problems.append(
                f"class_prompt is empty, but prior '{self.prior}' needs one; "
                "allowed: any text, such as 'a photo of a dog'"
            )
        if self.timestep_sampling == UNIFORM and self.shapes_logit_normal:
            problems.append(
                "logit_mean or logit_std is set, but timestep_sampling 'uniform' has neither; "
                "allowed: timestep_sampling 'logit_normal'"
            )
        if self.discrete_flow_shift and self.timestep_sampling != SHIFT:
            problems.append(
                f"discrete_flow_shift is {self.discrete_flow_shift:g}, but timestep_sampling "
                f"'{self.timestep_sampling}' has none; allowed: timestep_sampling 'shift'"
            )
        if self.keep_tokens and not (self.shuffle_caption or self.caption_tag_dropout_rate):
            problems.append(
                f"keep_tokens is {self.keep_tokens}, but nothing moves or is left out; allowed: 0, "
                "or shuffle_caption or caption_tag_dropout_rate"
            )
        return problems

    @property
    def shapes_logit_normal(self) -> bool:
        """Whether the logit-normal law is another than the usual one."""
        return self.logit_mean != 0 or self.logit_std != 1

    @property
    def uses_teacher(self) -> bool:
        return self.prior == TEACHER and self.prior_weight > 0

    @property
    def preserves_output(self) -> bool:
        return self.prior == PRESERVE and self.prior_weight > 0
