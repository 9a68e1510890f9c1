"""What can be told of a preference without a language model: which words occur, and which response is shorter."""

from __future__ import annotations

import re

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

Row = dict[str, str]


def words(text: str) -> set[str]:
    """The words of a text, in lower case."""
    return set(re.findall(r"[\w']+", text.lower()))


def bag_of_words_accuracy(train: list[Row], test: list[Row], l2: float = 0.01) -> float:
    """Share of ``test`` pairs that a logistic regression on the words of both responses orders right; ties count half.

    Args:
        train: pairs to learn from.
        test: other pairs.
        l2: weight of the squared weights, beside the mean loss of a pair.
    """
    vocabulary = sorted({word for row in train for side in ("chosen", "rejected") for word in words(row[side])})
    index = {word: number for number, word in enumerate(vocabulary)}
    differences = _differences(train, index)
    weights = torch.zeros(len(index), requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = l2 * (weights @ weights) - logsigmoid(differences @ weights).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    return _share_right(_differences(test, index) @ weights.detach())


def shorter_wins_accuracy(test: list[Row]) -> float:
    """Share of pairs whose chosen response has fewer characters; ties count half."""
    return _share_right(torch.tensor([len(row["rejected"]) - len(row["chosen"]) for row in test]))


def _differences(rows: list[Row], index: dict[str, int]) -> Tensor:
    """(B, words): 1 where only the chosen response has a word, -1 where only the rejected one has."""
    differences = torch.zeros(len(rows), len(index))
    for number, row in enumerate(rows):
        for side, sign in (("chosen", 1.0), ("rejected", -1.0)):
            known = [index[word] for word in words(row[side]) if word in index]
            differences[number, known] += sign
    return differences


def _share_right(margins: Tensor) -> float:
    return float((margins > 0).float().mean() + (margins == 0).float().mean() / 2)
