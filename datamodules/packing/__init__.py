"""Tokenised rows to batches: micro-batches of at most a token budget."""

from datamodules.packing.bins import fill_bins
from datamodules.packing.pairs import pack_pairs, pack_trees
from datamodules.packing.responses import pack_graded, pack_steps, pack_unpaired
from datamodules.packing.rows import TokenPair, TokenResponse, TokenSequence, TokenTree
from datamodules.packing.sequences import pack_sequences

__all__ = [
    "TokenPair",
    "TokenResponse",
    "TokenSequence",
    "TokenTree",
    "fill_bins",
    "pack_graded",
    "pack_pairs",
    "pack_sequences",
    "pack_steps",
    "pack_trees",
    "pack_unpaired",
]
