"""Heads that turn hidden states into numbers, the models that carry them, and their files."""
