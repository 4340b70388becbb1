"""What a training leaves on disk: the run's folder, its states and results, files and plots."""
