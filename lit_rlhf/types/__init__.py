"""What crosses rooms: the forest, and the batches that algorithms read."""

from lit_rlhf.types.batches import (
    Cursor,
    GradedBatch,
    GradedResponses,
    InstructionBatch,
    Instructions,
    JudgedSteps,
    JudgedStepsBatch,
    PreferenceBatch,
    PreferencePairs,
    Prompt,
    PromptAndTextBatch,
    PromptBatch,
    UnpairedBatch,
    UnpairedResponses,
)
from lit_rlhf.types.forest import Forest, Segment, num_sequence_tokens
from lit_rlhf.types.pictures import Picture
from lit_rlhf.types.rollouts import Rollouts

__all__ = [
    "Cursor",
    "Forest",
    "GradedBatch",
    "GradedResponses",
    "InstructionBatch",
    "Instructions",
    "JudgedSteps",
    "JudgedStepsBatch",
    "Picture",
    "PreferenceBatch",
    "PreferencePairs",
    "Prompt",
    "PromptAndTextBatch",
    "PromptBatch",
    "Rollouts",
    "Segment",
    "UnpairedBatch",
    "UnpairedResponses",
    "num_sequence_tokens",
]
