"""Texts to imitate beside responses: dealt out over minibatches, the same for any cut and any number of ranks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from lit_rlhf.ranks import num_ranks, sum_over_ranks
from lit_rlhf.rollout.minibatches import deal
from lit_rlhf.types import Forest, Instructions, Segment


def deal_texts(
    texts: Sequence[Instructions], num_minibatches: int, key: str, device: torch.device
) -> list[list[Instructions]]:
    """Deal the texts of all ranks out into minibatches of equal size, at random.

    Args:
        texts: micro-batches of this rank; maybe none.
        num_minibatches: how many; they differ by one text at most, over all ranks.
        key: names the draw, such as seed, iteration and pass over the data.
        device: that the ranks communicate on.

    Returns:
        For each minibatch the texts of this rank that belong to it, in no more micro-batches than before.
    """
    names = _names(texts)
    parts: list[list[Instructions]] = []
    for members in deal(names, num_minibatches, key, device):
        parts.append([])
        begin = 0
        for micro_batch in texts:
            end = begin + len(micro_batch.rows)
            if mine := [member - begin for member in members if begin <= member < end]:
                parts[-1].append(_pick(micro_batch, mine))
            begin = end
    return parts


def text_weight(texts: Sequence[Instructions], device: torch.device) -> Tensor:
    """() what the losses of tokens are multiplied by to become an average over those of all ranks.

    Args:
        texts: micro-batches of this rank.
        device: that the ranks communicate on.
    """
    count = torch.tensor(float(sum(len(text.forest.targets) for text in texts)), device=device)
    return num_ranks() / sum_over_ranks(count).clamp(min=1.0)


def _names(texts: Sequence[Instructions]) -> list[str]:
    """A name for every text: the address of its row, and a number where a step has it more than once."""
    seen: Counter[str] = Counter()
    names = []
    for row in (row for micro_batch in texts for row in micro_batch.rows):
        names.append(f"{row}#{seen[row]}")
        seen[row] += 1
    return names


def _pick(texts: Instructions, members: Sequence[int]) -> Instructions:
    """Some texts of a micro-batch."""
    if len(members) == len(texts.rows):
        return texts
    tokens, scored = texts.forest.tokens.tolist(), torch.zeros(texts.forest.num_tokens, dtype=torch.bool)
    scored[texts.forest.targets.cpu()] = True
    flags, starts, lengths = scored.tolist(), texts.forest.starts, texts.forest.lengths
    spans = [slice(starts[member], starts[member] + lengths[member]) for member in members]
    pictures = [texts.forest.seen_in(member) for member in members]
    roots = zip(spans, pictures, strict=True)
    forest = Forest.pack([Segment(tokens[span], flags[span], pictures=seen)] for span, seen in roots)
    rows, sources = (tuple(column[member] for member in members) for column in (texts.rows, texts.sources))
    return Instructions(forest.to(texts.forest.tokens.device), rows, sources)
