"""docs/moe.md is true: its families are those of the code, its examples are computed, its results were measured."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from lit_rlhf.losses.load_balancing import load_balancing_loss
from lit_rlhf.models.moe.balancing import told
from lit_rlhf.models.moe.expert_lora import GATED_EXPERTS
from lit_rlhf.models.moe.routers import FAMILIES

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/moe.md").read_text(encoding="utf-8")


def rows(section: str) -> list[list[str]]:
    """Cells of the table between two marks, without its head."""
    text = PAGE.split(f"<!-- {section} -->")[1].split(f"<!-- /{section} -->")[0]
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


WORKED = {case: (tokens, float(ours), float(theirs)) for case, tokens, ours, theirs in rows("worked")}


def probabilities(tokens: str) -> list[Tensor]:
    """What ``3 x (0.9, 0.1)`` and others in a cell stand for: (T, 2) each."""
    return [
        torch.tensor([[float(one), float(other)]]).repeat(int(count), 1)
        for count, one, other in re.findall(r"(\d) x \(([\d.]+), ([\d.]+)\)", tokens)
    ]


def ours(*layers: Tensor) -> Tensor:
    """(1) of tokens whose logits (T, 2) each layer gives, one expert to a token."""
    sums = torch.stack([layer.softmax(-1).sum(0) for layer in layers])
    choices = torch.stack([layer.argmax(-1).bincount(minlength=2).float() for layer in layers])
    return load_balancing_loss(sums, choices, num_tokens=torch.tensor(float(len(layers[0]))))


def theirs(*layers: Tensor, mask: Tensor | None = None) -> Tensor:
    loss = load_balancing_loss_func(layers, 2, 1, mask)
    assert isinstance(loss, Tensor)
    return loss


def worked(case: str) -> tuple[Tensor, Tensor]:
    """Both numbers of a row."""
    first, *others = (each.log() for each in probabilities(WORKED[case][0]))
    second = others[0] if others else None
    if second is None:
        return ours(first), theirs(first.exp())  # what the function takes for logits
    if case == "two layers":
        return ours(first, second), theirs(first, second)
    both = torch.cat([first, second])
    if case == "padding, no mask given":
        torch.testing.assert_close(theirs(both, mask=torch.tensor([[1, 1, 0, 0]])), ours(first))
        return ours(first), theirs(both)
    return ours(both), (theirs(first) + theirs(second)) / 2 if case == "two micro-batches" else theirs(both)


@pytest.mark.parametrize("case", WORKED)
def test_both_columns_are_what_is_computed(case: str):
    assert [float(number) for number in worked(case)] == pytest.approx(WORKED[case][1:], abs=0.005)


def test_they_differ_but_where_it_is_right():
    assert [case for case, (_, right, other) in WORKED.items() if right == other] == ["one layer"]
    assert len(WORKED) == 5


@pytest.mark.parametrize(("loss", "is_pulled"), [(ours, True), (theirs, False)])
def test_layers_that_make_up_for_each_other_have_no_gradient_there(loss, is_pulled: bool):
    layers = [each.log().requires_grad_() for each in probabilities(WORKED["two layers"][0])]
    gradients = torch.autograd.grad(loss(*layers), layers)
    assert all((each.abs().max() > 0.01) == is_pulled for each in gradients)


def test_families_are_those_of_the_code():
    told_of = {name: cells for family, *cells in rows("families") for name in family.split(" (")[0].split(", ")}
    routers = {re.sub("(TopKRouter|TopkRouter|Router)$", "", name): family for name, family in FAMILIES.items()}
    assert told_of.keys() == routers.keys()
    for name, (layout, scores, adapters) in told_of.items():
        assert scores in routers[name].scores.__name__
        assert (f"{name}Experts" in GATED_EXPERTS) == (adapters == "low-rank")
        assert layout == ("padded rows" if name == "Llama4" else "forest")


@pytest.mark.parametrize("page", [PAGE, (ROOT / "docs/metrics.md").read_text(encoding="utf-8")], ids=["moe", "metrics"])
def test_every_metric_of_routers_is_explained(page: str):
    names = [*told(torch.ones(2, 1, 2)), "mismatch"]
    assert [name for name in names if f"router/{name}`" not in page] == []


def test_results_are_those_that_were_measured():
    runs = json.loads((ROOT / "benchmarks/results/moe.json").read_text(encoding="utf-8"))["runs"]
    assert [cells[0] for cells in rows("results")] == [run["run"] for run in runs]
    for cells, run in zip(rows("results"), runs, strict=True):
        assert run["gate"] == "passed"
        assert ["" if run[name] is None else f"{run[name]:.3f}" for name in ("before", "after")] == cells[2:4]
