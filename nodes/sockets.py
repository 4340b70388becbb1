"""The pack's own socket types, and one that many packs share; all else is a core type."""

from comfy_api.latest import io

PersonalizeDataset = io.Custom("PERSONALIZE_DATASET")
PersonalizeEmbedding = io.Custom("PERSONALIZE_EMBEDDING")
PersonalizePreview = io.Custom("PERSONALIZE_PREVIEW")
PersonalizeOptimizer = io.Custom("PERSONALIZE_OPTIMIZER")
PersonalizeLoss = io.Custom("PERSONALIZE_LOSS")
PersonalizeRun = io.Custom("PERSONALIZE_RUN")
PersonalizeMemory = io.Custom("PERSONALIZE_MEMORY")
# Tuples of a LoRA's file name, model strength and clip strength, as other packs' stackers make.
LoraStack = io.Custom("LORA_STACK")
