"""What a run keeps of its steps: as results, and as the start of another run."""
