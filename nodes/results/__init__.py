"""Nodes that keep, show and share what a training made."""
