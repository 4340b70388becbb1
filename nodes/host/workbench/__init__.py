"""What pages ask of the host beside trainings: runs on disk, presets."""
