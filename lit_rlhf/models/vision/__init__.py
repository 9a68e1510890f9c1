"""Pictures to what a model computes with: the one way from tokens and pictures to hidden states."""

from lit_rlhf.models.vision.eyes import MAX_BYTES, Features, Looking, Vision
from lit_rlhf.models.vision.kinds import REFUSED, is_seeing, parts_beside_decoder
from lit_rlhf.models.vision.opening import keep_in_step, open_eyes

__all__ = [
    "MAX_BYTES",
    "REFUSED",
    "Features",
    "Looking",
    "Vision",
    "is_seeing",
    "keep_in_step",
    "open_eyes",
    "parts_beside_decoder",
]
