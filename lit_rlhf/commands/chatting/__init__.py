"""A talk at the terminal: what is typed, what was said, what is shown, and what is kept for training."""
