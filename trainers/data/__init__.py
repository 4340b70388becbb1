"""Pictures, captions and masks: from files to batches of latents."""
