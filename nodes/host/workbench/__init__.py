"""What the page and the graph may ask of runs that lie on disk."""
