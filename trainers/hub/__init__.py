"""Sharing over the Hugging Face Hub: what goes there with its model card, what comes from there."""
