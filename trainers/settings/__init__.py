"""Every number and choice the user can set: default, bounds, help and source, written once."""
