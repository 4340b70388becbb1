"""From the host's MODEL, CLIP and VAE to what trains, and back."""
