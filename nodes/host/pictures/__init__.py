"""Pictures that the host's own sampler makes: class images, and comparisons of adapters."""
