"""Terms: what a loss is given, what it is refused, and that a coupled loss keeps value and gradient when split."""

from __future__ import annotations

import pytest
import torch

from lit_rlhf import losses
from lit_rlhf.losses import kl, policy_gradient, reward, values
from lit_rlhf.losses.divergences import forward_kl_scores, reverse_kl_scores
from lit_rlhf.losses.terms import (
    LossTerm,
    PairLogprobs,
    check_terms,
    couple,
    coupled_values,
    pair_logprobs,
    part_names,
    refuse_nonfinite,
)

LENGTHS = [2, 3, 1, 4]
SEQUENCES = torch.arange(4).repeat_interleave(torch.tensor(LENGTHS))
CHOSEN, REJECTED = torch.tensor([1, 2]), torch.tensor([0, 3])
OTHERS = {module.__name__ for module in (reward, kl, policy_gradient, values)}
PREFERENCE_LOSSES = [
    name for name in losses.__all__ if name.endswith("_loss") and vars(losses)[name].__module__ not in OTHERS
]


def read(**options):
    torch.manual_seed(0)
    policy, reference = -torch.rand(10), -torch.rand(10)
    margins = torch.tensor([0.5, 1.5])
    made = pair_logprobs(policy, reference, SEQUENCES, CHOSEN, REJECTED, margins, **options)
    return made, policy.split(LENGTHS), reference.split(LENGTHS)


def test_sums_by_a_slow_loop():
    pairs, policy, reference = read()
    for number, (chosen, rejected) in enumerate(zip(CHOSEN, REJECTED, strict=True)):
        ours = [float(column[number]) for column in pairs]
        theirs = [
            (policy[chosen] - reference[chosen]).sum(),
            (policy[rejected] - reference[rejected]).sum(),
            policy[chosen].sum(),
            policy[rejected].sum(),
            reference[chosen].sum(),
            reference[rejected].sum(),
            len(policy[chosen]),
            len(policy[rejected]),
            [0.5, 1.5][number],
        ]
        assert ours == pytest.approx([float(value) for value in theirs], abs=1e-6)


@pytest.mark.parametrize("ld_alpha", [1.0, 0.25])
def test_pairs_may_share_responses(ld_alpha):
    """All pairs of a ranking, against the same pairs with copies of their responses."""
    torch.manual_seed(1)
    columns = torch.randn(2, 10)
    better, worse = torch.tensor([0, 0, 1, 3]), torch.tensor([1, 3, 3, 2])
    shared = pair_logprobs(*columns, SEQUENCES, better, worse, torch.zeros(4), num_sequences=4, ld_alpha=ld_alpha)
    sides = torch.stack([better, worse], dim=1).flatten().tolist()
    copies = [torch.cat([column.split(LENGTHS)[side] for side in sides]) for column in columns]
    numbers = torch.arange(8).repeat_interleave(torch.tensor([LENGTHS[side] for side in sides]))
    apart = pair_logprobs(
        *copies, numbers, torch.arange(0, 8, 2), torch.arange(1, 8, 2), torch.zeros(4), ld_alpha=ld_alpha
    )
    for ours, theirs in zip(shared, apart, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_length_desensitised_sums_weigh_only_log_ratios_past_the_shared_length():
    pairs, policy, reference = read(ld_alpha=0.25)
    plain, *_ = read()
    difference = policy[1] - reference[1]  # 3 tokens against 2
    assert float(pairs.chosen_logratios[0]) == pytest.approx(float(difference[:2].sum() + 0.25 * difference[2:].sum()))
    assert torch.equal(pairs.rejected_logratios[0], plain.rejected_logratios[0])
    assert torch.equal(pairs.chosen_logprobs, plain.chosen_logprobs)


def test_scores_replace_log_ratios_only():
    pairs, plain = read(scores=forward_kl_scores)[0], read()[0]
    assert torch.equal(pairs.chosen_logratios, forward_kl_scores(plain.chosen_logratios))
    assert torch.equal(pairs[2], plain[2])


def test_shapes_that_do_not_belong_together():
    with pytest.raises(ValueError, match=r"sequences \(3,\) must be \(N,\)"):
        pair_logprobs(torch.zeros(2), torch.zeros(2), torch.zeros(3), CHOSEN, REJECTED, torch.zeros(2))


def test_a_term_gives_a_loss_its_inputs_its_options_and_the_algorithms_beta():
    pairs, *_ = read()
    term = LossTerm(losses.odpo_loss, options={"alpha": 2.0})
    expected = losses.odpo_loss(pairs.chosen_logratios, pairs.rejected_logratios, pairs.margins, beta=0.3, alpha=2.0)
    assert torch.equal(term(pairs, 0.3), expected)
    own = LossTerm(losses.sigmoid_loss, options={"beta": 0.7})
    assert torch.equal(own(pairs, 0.3), losses.sigmoid_loss(pairs.chosen_logratios, pairs.rejected_logratios, beta=0.7))
    assert (term.name, LossTerm().name) == ("odpo", "sigmoid")


@pytest.mark.parametrize("name", PREFERENCE_LOSSES)
def test_every_loss_makes_a_term(name):
    term = LossTerm(getattr(losses, name))
    pairs, *_ = read()
    assert term(pairs, 0.1).shape == (2,)
    reads_reference = {name for name in term.inputs if name.startswith("ref_") or name.endswith("logratios")}
    assert term.needs_reference == bool(reads_reference)


def test_a_loss_of_your_own():
    def squared(margins, chosen_logprobs, *, power=2.0):
        return (chosen_logprobs - margins) ** power

    pairs, *_ = read()
    assert torch.equal(LossTerm(squared)(pairs, 0.1), (pairs.chosen_logprobs - pairs.margins) ** 2.0)
    assert not LossTerm(squared).needs_reference


def test_an_unknown_option_is_refused():
    with pytest.raises(ValueError, match="sigmoid has no option 'label_smoothing'; its options are: beta"):
        LossTerm(losses.sigmoid_loss, options={"label_smoothing": 0.1})


@pytest.mark.parametrize(
    ("function", "message"),
    [(lambda chosen, *, beta: chosen, "asks for chosen; a preference loss"), (lambda: 0, "asks for no tensors")],
)
def test_a_loss_that_asks_for_something_else_is_refused(function, message):
    with pytest.raises(ValueError, match=message):
        LossTerm(function)


def test_settings_that_a_loss_is_not_defined_for():
    plain = {"ld_alpha": 1.0, "use_weighting": False}
    check_terms([LossTerm(), LossTerm(losses.sft_loss)], forward_kl_scores, **plain)
    check_terms([LossTerm(losses.nca_pair_loss), LossTerm(losses.aot_loss)], reverse_kl_scores, **plain)
    with pytest.raises(ValueError, match="nca_pair is defined for the reverse KL only"):
        check_terms([LossTerm(), LossTerm(losses.nca_pair_loss)], forward_kl_scores, **plain)
    for setting in ({"use_weighting": True}, {"ld_alpha": 0.5}):
        with pytest.raises(ValueError, match="aot compares pairs by rank"):
            check_terms([LossTerm(losses.aot_loss)], reverse_kl_scores, **{**plain, **setting})
    with pytest.raises(ValueError, match=r"ld_alpha is 1\.5"):
        check_terms([LossTerm()], reverse_kl_scores, ld_alpha=1.5, use_weighting=False)


@pytest.mark.parametrize("loss", [losses.aot_loss, losses.aot_unpaired_loss])
def test_a_coupled_loss_split_in_two_keeps_value_and_gradient(loss):
    torch.manual_seed(1)
    whole = PairLogprobs(*(torch.randn(5, requires_grad=True) for _ in PairLogprobs._fields))
    term = LossTerm(loss)
    values = term(whole, 0.1)
    wanted = torch.autograd.grad(values.sum(), whole, allow_unused=True, materialize_grads=True)
    together, slopes = couple(term, whole, 0.1)
    for part in (slice(0, 2), slice(2, 5)):
        columns = PairLogprobs(*(column[part].detach().requires_grad_() for column in whole))
        mine = coupled_values(together[part], PairLogprobs(*(slope[part] for slope in slopes)), columns)
        torch.testing.assert_close(mine, values[part])
        gradients = torch.autograd.grad(mine.sum(), columns)
        for got, all_of_it in zip(gradients, wanted, strict=True):
            torch.testing.assert_close(got, all_of_it[part])


def test_parts_have_names_of_their_own():
    terms = [LossTerm(losses.sft_loss), LossTerm(), LossTerm(losses.sft_loss), LossTerm(losses.ipo_loss)]
    assert part_names(terms) == ("loss/sft_1", "loss/sigmoid", "loss/sft_2", "loss/ipo")


def test_rows_whose_loss_is_not_finite_are_named():
    table = torch.zeros(2, 12)
    rows = [f"a:{number}" for number in range(12)]
    refuse_nonfinite(table, rows, step=3)
    table[1, 4], table[0, 6] = torch.nan, torch.inf
    with pytest.raises(FloatingPointError, match=r"not finite at step 3 in a:4, a:6; nothing was updated"):
        refuse_nonfinite(table, rows, step=3)
    with pytest.raises(FloatingPointError, match=r"a:7 and 4 more; nothing"):
        refuse_nonfinite(table + torch.nan, rows, step=3)


def test_without_beta_each_loss_keeps_its_own_default():
    from lit_rlhf.losses import simpo_loss
    from lit_rlhf.losses.terms import reward_scale

    simpo = LossTerm(simpo_loss)
    assert reward_scale([simpo, LossTerm()], None) == 2.0
    assert reward_scale([simpo], 0.7) == 0.7
    torch.manual_seed(0)
    pairs = PairLogprobs(*-torch.rand(6, 3), *torch.randint(1, 5, (2, 3)).float(), torch.zeros(3))
    torch.testing.assert_close(simpo(pairs), simpo(pairs, 2.0))
    assert not torch.allclose(simpo(pairs), simpo(pairs, 0.1))
