"""The training itself; knows nothing of ComfyUI."""
