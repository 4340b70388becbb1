"""One training in the host: what is wired in, where it is kept, and what shows how far it is."""
