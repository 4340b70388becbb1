"""What a training takes from disk and leaves there: presets; its run's states, results, plots."""
