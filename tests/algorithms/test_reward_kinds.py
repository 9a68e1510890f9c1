"""Every kind of judgement: one step is one step however it is cut, and is what padded rows of a classifier give."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid
from transformers import AutoModelForSequenceClassification

from lit_rlhf import losses
from lit_rlhf.losses.reward_terms import RewardTerm
from lit_rlhf.types import GradedResponses, JudgedSteps

OBJECTIVES = {"good": 0.75, "short": -0.5}
RECIPES = {
    "pairs": ("pairs", {}),
    "smoothed_and_centred": (
        "pairs",
        {
            "losses": [
                RewardTerm(options={"label_smoothing": 0.1, "margin_scale": 2.0}),
                RewardTerm(losses.centring_loss, 0.1),
            ],
            "objectives": {"score": 2.0},
        },
    ),
    "pairs_of_lists": ("graded", {}),
    "ties": ("graded", {"losses": [RewardTerm(losses.tied_bradley_terry_loss), RewardTerm(losses.davidson_loss, 0.5)]}),
    "plackett_luce": ("graded", {"losses": [RewardTerm(losses.plackett_luce_loss)]}),
    "regression_and_pairs": ("graded", {"losses": [RewardTerm(losses.huber_loss), RewardTerm(weight=0.3)]}),
    "two_objectives": (
        "objectives",
        {
            "objectives": OBJECTIVES,
            "losses": [RewardTerm(losses.regression_loss), RewardTerm(losses.plackett_luce_loss, 0.5)],
        },
    ),
    "steps": ("steps", {"losses": [RewardTerm(losses.step_loss)]}),
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_one_step_is_one_step_however_it_is_cut(make_reward, make_judged, fit, assert_same_run, recipe):
    kind, options = RECIPES[recipe]
    whole = fit(make_reward(**options), make_judged(kind, 12, 6))
    assert len(set(whole.logger.column("train/loss"))) == whole.global_step == 2
    accumulated = make_judged(kind, 12, 2, 25)
    assert max(len(batch.micro_batches) for batch in accumulated) > 1
    assert_same_run(fit(make_reward(**options), accumulated, accumulate_grad_batches=3), whole)
    padded = make_reward(**options, backbone={"attention": "eager"})
    one_by_one_backwards = make_judged(kind, 12, 6, 1, step=-1)
    assert_same_run(fit(padded, one_by_one_backwards), whole)
    assert (padded.model.backbone.layout, whole.lightning_module.model.backbone.layout) == ("padded", "forest")


def padded_rows(forest, pad_left):
    """Tokens and mask, one row per sequence, with the token id 3 in the padding."""
    starts = forest.starts
    paths = [
        [at for part in forest.path(leaf) for at in range(starts[part], starts[part] + forest.lengths[part])]
        for leaf in forest.leaves
    ]
    width = max(map(len, paths)) + 2
    rows = [forest.tokens[path].tolist() for path in paths]
    blank = [width - len(row) for row in rows]
    if pad_left:
        tokens = [[3] * n + row for n, row in zip(blank, rows, strict=True)]
        mask = [[0] * n + [1] * len(row) for n, row in zip(blank, rows, strict=True)]
    else:
        tokens = [row + [3] * n for n, row in zip(blank, rows, strict=True)]
        mask = [[1] * len(row) + [0] * n for n, row in zip(blank, rows, strict=True)]
    first = blank if pad_left else [0] * len(paths)
    places = [
        first[row] + paths[row].index(at)
        for row, at in zip(forest.sequences.tolist(), forest.targets.tolist(), strict=True)
    ]
    return torch.tensor(tokens), torch.tensor(mask), places


def list_loss(scores, grades):
    """Plackett-Luce from the best to the worst, None where nothing is ranked; without ties."""
    order = sorted(range(len(grades)), key=lambda at: -grades[at])
    rest = [torch.stack([scores[other] for other in order[at:]]).logsumexp(0) for at in range(len(order))]
    return sum(total - scores[at] for total, at in zip(rest, order, strict=True)) if len(order) > 1 else None


def loss_by_hand(classifier, part, pad_left):
    """The loss of each kind with what :data:`PLAIN` asks for, in loops, from the classifier of transformers."""
    tokens, mask, places = padded_rows(part.forest, pad_left)
    if isinstance(part, JudgedSteps):
        states = classifier.model(tokens, attention_mask=mask).last_hidden_state
        sequences = part.forest.sequences.tolist()
        scores = classifier.score(torch.stack([states[row, at] for row, at in zip(sequences, places, strict=True)]))
        known = ~part.labels.isnan()
        return binary_cross_entropy_with_logits(scores[known, 0], part.labels[known])
    scores = classifier(tokens, attention_mask=mask).logits
    if not isinstance(part, GradedResponses):
        margins = scores[part.chosen, 0] - scores[part.rejected, 0] - part.margins
        return -logsigmoid(margins).mean()
    if scores.shape[1] == 1:
        ranked = [
            (better, worse)
            for a, b in combinations(range(len(part.rows)), 2)
            for better, worse in ((a, b), (b, a))
            if part.groups[a] == part.groups[b] and part.ranks[better] < part.ranks[worse]
        ]
        return torch.stack([-logsigmoid(scores[better, 0] - scores[worse, 0]) for better, worse in ranked]).mean()
    errors, lists = [], []
    for k in range(scores.shape[1]):
        for group in range(int(part.groups.max()) + 1):
            ours = [
                at for at in range(len(part.rows)) if part.groups[at] == group and not math.isnan(part.grades[at, k])
            ]
            errors += [(scores[at, k] - part.grades[at, k]) ** 2 for at in ours]
            lists.append(list_loss([scores[at, k] for at in ours], [float(part.grades[at, k]) for at in ours]))
    return torch.stack(errors).mean() + 0.5 * torch.stack([loss for loss in lists if loss is not None]).mean()


PLAIN = ("pairs", "pairs_of_lists", "two_objectives", "steps")


def untied(batches):
    """Grades moved apart by a little, so that no two of them are equal."""
    for batch in batches:
        for part in batch.micro_batches:
            if isinstance(part, GradedResponses) and part.grades.shape[1] > 1:
                part.grades.add_(torch.arange(len(part.rows))[:, None] / 100)
    return batches


@pytest.mark.parametrize(("enabled", "pad_left"), [(False, False), (True, True)], ids=["full", "lora"])
@pytest.mark.parametrize("recipe", PLAIN)
def test_it_is_what_a_classifier_of_transformers_gives(
    make_reward, make_judged, fit, tiny_llama, recipe, enabled, pad_left
):
    kind, options = RECIPES[recipe]
    module = make_reward(**options, lora={"enabled": enabled}, backbone={"fused": True}, lr=0.01)
    theirs = AutoModelForSequenceClassification.from_pretrained(
        tiny_llama(), num_labels=len(module.objectives), pad_token_id=3, attn_implementation="eager"
    )
    wanted = dict(theirs.named_parameters())
    if enabled:
        config = LoraConfig(task_type="SEQ_CLS", r=4, lora_alpha=16, target_modules="all-linear")
        peft = get_peft_model(theirs, config)
        wanted = {name: parameter for name, parameter in peft.named_parameters() if parameter.requires_grad}
    ours = dict(module.model.named_parameters())
    partner = {
        name: "score.weight"
        if "score" in name.split(".")
        else f"backbone.model.{name.replace('.default.', '.reward.')}"
        for name in wanted
    }
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(ours[partner[name]])
    batches = untied(make_judged(kind, 15, 5))
    optimizer = torch.optim.SGD(wanted.values(), lr=0.01)
    curve = []
    for batch in batches:
        loss = loss_by_hand(theirs, batch.micro_batches[0], pad_left)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        curve.append(loss.item())
    trainer = fit(module, batches)
    assert trainer.logger.column("train/loss") == pytest.approx(curve, rel=1e-5)
    assert len(set(curve)) == 3
    for name, parameter in wanted.items():
        assert (ours[partner[name]] - parameter).norm() <= 1e-4 * parameter.norm(), name


def test_a_shorter_last_step(make_reward, make_judged, fit, assert_same_run):
    whole = fit(make_reward(), make_judged("graded", 20, 8), max_epochs=2)
    cut = fit(make_reward(), make_judged("graded", 20, 4), max_epochs=2, accumulate_grad_batches=2)
    assert cut.global_step == 6
    assert_same_run(cut, whole)


@pytest.mark.parametrize(("recipe", "stage"), [*((recipe, "validate") for recipe in RECIPES), ("pairs", "test")])
def test_evaluation_is_over_examples_not_over_batches(
    make_reward, make_judged, make_trainer, make_loader, recipe, stage
):
    kind, options = RECIPES[recipe]
    module = make_reward(**options)
    before = {name: value.clone() for name, value in module.model.state_dict().items()}
    cuts = [make_judged(kind, 14, 14), make_judged(kind, 14, 4), make_judged(kind, 14, 5, 40, step=-1)]
    found = [
        getattr(make_trainer(logger=False), stage)(module, make_loader(batches), verbose=False)[0] for batches in cuts
    ]
    assert all(0 < metrics.pop(f"{'val' if stage == 'validate' else stage}/data/fill") <= 1 for metrics in found)
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-4, abs=1e-6)
    spread = {"score.mean", "score.std", "score.num_responses"}
    after = module.model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in set(before) - spread)


def test_objectives_learn_apart_and_count_by_weight(make_reward, make_judged, fit):
    """The weights change what the score is, not what each objective learns."""
    batches = make_judged("objectives", 16, 8)
    terms = {"losses": [RewardTerm(losses.regression_loss)]}
    modules = [make_reward(**terms, objectives={"good": weight, "short": -0.5}) for weight in (0.75, 3.0)]
    curves = [fit(module, batches).logger for module in modules]
    assert curves[0].column("train/loss") == curves[1].column("train/loss")
    assert curves[0].column("train/scores/margin") != pytest.approx(curves[1].column("train/scores/margin"), rel=0.01)
    weights = [module.model.score.weight for module in modules]
    assert torch.equal(*weights)
    forest = batches[0].micro_batches[0].forest
    with torch.no_grad():
        both, whole = modules[0].model.objective_scores(forest), modules[0].model.scores(forest)
    torch.testing.assert_close(whole, 0.75 * both[:, 0] - 0.5 * both[:, 1])


def test_an_objective_that_no_grade_is_known_of_stands_still(make_reward, make_judged, fit):
    batches = make_judged("objectives", 8, 8)
    batches[0].micro_batches[0].grades[:, 1] = math.nan
    module = make_reward(losses=[RewardTerm(losses.regression_loss)], objectives=OBJECTIVES)
    before = module.model.score.weight.detach().clone()
    fit(module, batches)
    after = module.model.score.weight.detach()
    assert torch.equal(after[1], before[1])
    assert not torch.equal(after[0], before[0])


def test_a_step_without_a_unit_of_a_loss(make_reward, make_judged, fit):
    """All responses tie: there is no pair to learn from, and nothing moves."""
    batches = make_judged("graded", 4, 4)
    batches[0].micro_batches[0].ranks.fill_(0)
    module = make_reward()
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    trainer = fit(module, batches)
    assert "train/loss" not in trainer.logger.rows[0]
    assert all(torch.equal(parameter, before[name]) for name, parameter in module.named_parameters())


def test_ties_are_none_of_the_pairs(make_reward, make_judged, fit, make_trainer, make_loader):
    (batch,) = make_judged("graded", 12, 12)
    part = batch.micro_batches[0]
    pairs = [
        (a, b)
        for a in range(len(part.rows))
        for b in range(len(part.rows))
        if part.groups[a] == part.groups[b] and part.ranks[a] < part.ranks[b]
    ]
    both = [(a, b) for a, b in combinations(range(len(part.rows)), 2) if part.groups[a] == part.groups[b]]
    assert len(both) - len(pairs) > 3, "there are ties"
    module = make_reward()
    (metrics,) = make_trainer(logger=False).validate(module, make_loader([batch]), verbose=False)
    with torch.no_grad():
        scores = module.model.scores(part.forest).tolist()
    margins = torch.tensor([scores[a] - scores[b] for a, b in pairs])
    assert metrics["val/scores/accuracy"] == pytest.approx(float((margins > 0).float().mean()))
    assert metrics["val/scores/margin"] == pytest.approx(float(margins.mean()), rel=1e-4)
    assert metrics["val/loss"] == pytest.approx(float(-logsigmoid(margins).mean()), rel=1e-5)


@pytest.mark.parametrize("kind", ["pairs", "graded", "steps"])
def test_predictions(make_reward, make_judged, make_trainer, make_loader, kind):
    module = make_reward(losses=[RewardTerm(losses.step_loss)] if kind == "steps" else None)
    batches = make_judged(kind, 6, 4, 40)
    predicted = make_trainer(logger=False).predict(module, make_loader(batches))
    rows = [row for batch in predicted for row in batch]
    parts = [part for batch in batches for part in batch.micro_batches]
    assert [row["row"] for row in rows] == [name for part in parts for name in part.rows]
    assert [row["source"] for row in rows] == [name for part in parts for name in part.sources]
    with torch.no_grad():
        if kind == "pairs":
            found = [(row["chosen_score"], row["rejected_score"], row["margin"]) for row in rows]
            read = [module(part) for part in parts]
            chosen, rejected = (
                torch.cat([r._asdict()[f"{side}_scores"] for r in read]) for side in ("chosen", "rejected")
            )
            wanted = list(zip(chosen.tolist(), rejected.tolist(), (chosen - rejected).tolist(), strict=True))
        elif kind == "graded":
            found = [(row["score"],) for row in rows]
            wanted = [(score,) for part in parts for score in module.model.scores(part.forest).tolist()]
        else:
            found = [tuple(row["step_scores"]) for row in rows]
            wanted = []
            for part in parts:
                scores = module.model.step_scores(part.forest)
                wanted += [tuple(scores[part.forest.sequences == at].tolist()) for at in range(len(part.rows))]
    assert [len(row) for row in found] == [len(row) for row in wanted]
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-6)
