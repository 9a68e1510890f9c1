"""Losses: pure functions on tensors, torch only.

How a preference loss is called. Its positional parameters are tensors, chosen by their names from this list; everything
after ``*`` is a scalar setting with a default. Shape letter: B preference pairs.

==============================================  =====================================================================
``chosen_logratios``, ``rejected_logratios``     (B,) log pi(y|x) - log pi_ref(y|x), summed over the response's tokens
                                                 (weighted by LD-DPO and transformed by an f-divergence if asked)
``chosen_logprobs``, ``rejected_logprobs``       (B,) log pi(y|x), summed over the response's tokens, in nats
``ref_chosen_logprobs``,                         (B,) the same under the reference
``ref_rejected_logprobs``
``chosen_lengths``, ``rejected_lengths``         (B,) response tokens
``margins``                                      (B,) by how much the chosen response is better; 0 where unknown
==============================================  =====================================================================

It returns one number per pair (B,), not reduced: the caller sums over its pairs and divides by the number of pairs of
the whole step, over all micro-batches and ranks, so that the result does not depend on the split. The decorators in
:mod:`lit_rlhf.losses.marks` say where a loss asks for more than that.

A reward loss is called the same way. It asks for tensors of one unit, and returns one number for each of them, which is
what its sum is divided by: pairs (B), responses (R), lists (G) if it asks for ``lists``, or judged steps (N).

==============================================  =====================================================================
``chosen_scores``, ``rejected_scores``           (B,) one number per response; no ties among them unless it asks for
                                                 ``ties``
``margins``                                      (B,) by how much the chosen response is better; 0 where unknown
``ties``                                         (B,) bool, True = neither is better
``scores``                                       (R,) one number per response, by objective
``grades``                                       (R,) how good each response is, higher better
``ranks``                                        (R,) place of each response in its list, 0 the best
``lists``                                        (R,) int64, the list that each response belongs to
``step_scores``                                  (N,) one number per judged step
``step_labels``                                  (N,) from 0 (wrong) to 1 (right)
==============================================  =====================================================================

What learns from rollouts, and what imitates texts, is called as its algorithm's page reads, as ``token_rewards`` is:
those functions have arguments of their own, one number per scored token (N), per response (L) or per cell of padded
responses (L, R), and settings with defaults after ``*``. Their losses are not reduced either.
"""

from lit_rlhf.losses.advantages import (
    Advantages,
    discounted_returns,
    gae,
    group_advantages,
    leave_one_out_advantages,
    length_adaptive_lambda,
    token_rewards,
    whiten,
)
from lit_rlhf.losses.anchored import apo_down_loss, apo_zero_loss, bco_pair_loss, nca_pair_loss, sppo_hard_loss
from lit_rlhf.losses.divergences import alpha_scores, forward_kl_scores, js_scores, reverse_kl_scores
from lit_rlhf.losses.kl import adapted_kl_coef, kl_k1, kl_k2, kl_k2_loss, kl_k3, kl_k3_loss
from lit_rlhf.losses.likelihood import sequence_shares, smoothed_nll, token_shares
from lit_rlhf.losses.marks import (
    allows_divergence,
    averaged_over_chosen_tokens,
    is_averaged_over_chosen_tokens,
    is_divergence_allowed,
    is_whole_batch,
    whole_batch,
)
from lit_rlhf.losses.policy_gradient import (
    PolicyLoss,
    clipped_policy_loss,
    importance_weights,
    reinforce_loss,
    sequence_policy_loss,
)
from lit_rlhf.losses.preference import (
    PreferenceStatistics,
    conservative_loss,
    discopop_loss,
    exo_pair_loss,
    hinge_loss,
    ipo_loss,
    odpo_loss,
    preference_statistics,
    robust_loss,
    sigmoid_loss,
    sigmoid_norm_loss,
)
from lit_rlhf.losses.reference_free import cpo_loss, orpo_loss, sft_loss, simpo_loss
from lit_rlhf.losses.reward import (
    bradley_terry_loss,
    centring_loss,
    davidson_loss,
    huber_loss,
    plackett_luce_loss,
    regression_loss,
    step_loss,
    tied_bradley_terry_loss,
)
from lit_rlhf.losses.score_shaping import (
    Moments,
    clipped_scores,
    normalised_scores,
    overlong_penalty,
    penalised_scores,
    replaced_scores,
    updated_moments,
)
from lit_rlhf.losses.transport import aot_loss, aot_unpaired_loss
from lit_rlhf.losses.values import ValueLoss, clipped_value_loss, explained_variance
from lit_rlhf.losses.weighting import ld_token_weights, wpo_weights

__all__ = [
    "Advantages",
    "Moments",
    "PolicyLoss",
    "PreferenceStatistics",
    "ValueLoss",
    "adapted_kl_coef",
    "allows_divergence",
    "alpha_scores",
    "aot_loss",
    "aot_unpaired_loss",
    "apo_down_loss",
    "apo_zero_loss",
    "averaged_over_chosen_tokens",
    "bco_pair_loss",
    "bradley_terry_loss",
    "centring_loss",
    "clipped_policy_loss",
    "clipped_scores",
    "clipped_value_loss",
    "conservative_loss",
    "cpo_loss",
    "davidson_loss",
    "discopop_loss",
    "discounted_returns",
    "exo_pair_loss",
    "explained_variance",
    "forward_kl_scores",
    "gae",
    "group_advantages",
    "hinge_loss",
    "huber_loss",
    "importance_weights",
    "ipo_loss",
    "is_averaged_over_chosen_tokens",
    "is_divergence_allowed",
    "is_whole_batch",
    "js_scores",
    "kl_k1",
    "kl_k2",
    "kl_k2_loss",
    "kl_k3",
    "kl_k3_loss",
    "ld_token_weights",
    "leave_one_out_advantages",
    "length_adaptive_lambda",
    "nca_pair_loss",
    "normalised_scores",
    "odpo_loss",
    "orpo_loss",
    "overlong_penalty",
    "penalised_scores",
    "plackett_luce_loss",
    "preference_statistics",
    "regression_loss",
    "reinforce_loss",
    "replaced_scores",
    "reverse_kl_scores",
    "robust_loss",
    "sequence_policy_loss",
    "sequence_shares",
    "sft_loss",
    "sigmoid_loss",
    "sigmoid_norm_loss",
    "simpo_loss",
    "smoothed_nll",
    "sppo_hard_loss",
    "step_loss",
    "tied_bradley_terry_loss",
    "token_rewards",
    "token_shares",
    "updated_moments",
    "whiten",
    "whole_batch",
    "wpo_weights",
]
