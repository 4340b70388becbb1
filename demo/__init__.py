"""A little drawn world, a small base model that has learned it, and meters for both."""
