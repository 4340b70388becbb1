"""The runs on disk, to list, open, compare and tidy; whatever stands in their folders."""
