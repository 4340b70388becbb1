"""Adapters on the host's models: a stack of them goes on, the difference of two comes off."""
