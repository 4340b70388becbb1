"""The settings that each method has alone."""
