"""Watching and saving: none of these changes a gradient or the random state of training."""
