"""A small Stable Diffusion 3 of the drawn world, trained by flow matching."""
