"""Nodes that read pictures to train on, or make them."""
