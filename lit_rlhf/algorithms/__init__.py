"""Algorithms: one LightningModule per file."""
