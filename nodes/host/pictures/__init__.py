"""Pictures: what nodes show, and what the sampler makes: class images, comparisons of adapters."""
