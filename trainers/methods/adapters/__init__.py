"""What is done with LoRAs that are there: merged, resized, extracted from trained models."""
