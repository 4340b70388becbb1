"""What the denoiser is asked for: noise, timesteps, targets, losses."""
