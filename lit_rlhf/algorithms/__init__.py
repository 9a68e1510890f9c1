"""Algorithms: one LightningModule per file."""

from lit_rlhf.strategies.fsdp2 import register

register()  # so that `Trainer(strategy="fsdp2")` is known wherever an algorithm is
