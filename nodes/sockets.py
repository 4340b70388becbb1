"""The pack's own socket types; everything else is a core type."""

from comfy_api.latest import io

PersonalizeDataset = io.Custom("PERSONALIZE_DATASET")
PersonalizeEmbedding = io.Custom("PERSONALIZE_EMBEDDING")
PersonalizePreview = io.Custom("PERSONALIZE_PREVIEW")
PersonalizeOptimizer = io.Custom("PERSONALIZE_OPTIMIZER")
PersonalizeLoss = io.Custom("PERSONALIZE_LOSS")
PersonalizeRun = io.Custom("PERSONALIZE_RUN")
