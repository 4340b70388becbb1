"""Base models: records of what differs between kinds, and what any module needs to train."""
