"""The bridge to ComfyUI: the only place that names its modules."""
