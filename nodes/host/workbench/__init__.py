"""What pages and graphs ask of the host beside trainings: runs on disk, presets."""
