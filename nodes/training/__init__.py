"""Nodes that train, and what they are set up with."""
