"""How the host stores weights: in what kinds of numbers, and what they hash to."""
