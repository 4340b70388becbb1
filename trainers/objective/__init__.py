"""What the denoiser is asked for: noise, timesteps, captions, targets, losses."""
