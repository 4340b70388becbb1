"""Pictures, captions, masks and control images: from files to batches of latents."""
