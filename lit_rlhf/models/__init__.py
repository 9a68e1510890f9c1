"""Models: the backbone and its roles, attention over a forest, the head."""
