"""Nodes that apply adapters and learned tokens, stack them, and make new ones of them."""
