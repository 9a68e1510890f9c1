"""Memory by role and phase."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from lit_rlhf.estimating.phases import CONTEXT, memory, rollout_rows
from lit_rlhf.estimating.run import Beside, Run, Sampling, Texts
from lit_rlhf.models.options import LoraOptions

Make = Callable[..., Run]


def test_static_memory_of_ppo_by_hand(make_run: Make, sampling: Sampling):
    run = make_run(algorithm="ppo", sampling=sampling, reference="base", critic="adapter", num_reward_adapters=1)
    roles = memory(run).roles
    numbers = sum(16 * (i + o) for i, o in [(128, 128), (128, 64), (128, 64), (128, 128), *[(128, 352)] * 3]) * 4
    head = 4 * (128 + 1)
    assert roles["adapter"] == 4 * numbers
    assert roles["reward adapters and heads"] == roles["critic"] == 4 * numbers + head
    assert roles["optimizer"] == 2 * (8 * numbers + head) + 4 * 2 * 7 * 2 * 4
    assert "reference model" not in roles
    assert memory(run).num_trained == 2 * numbers + 129


def test_full_fine_tuning_holds_a_second_model_and_moments_of_all(make_run: Make):
    run = make_run(algorithm="dpo", backbone={"lora": LoraOptions(enabled=False)}, reference="model")
    roles = memory(run).roles
    assert roles["reference model"] == roles["base"]
    assert roles["optimizer"] == pytest.approx(2 * roles["base"], rel=1e-2)


def test_gradients_count_from_the_second_pass_on(make_run: Make):
    one, several = memory(make_run()), memory(make_run(token_budget=224))
    assert not one.phases["step"]["gradients"]
    assert several.phases["step"]["gradients"] == several.roles["adapter"]
    assert several.phases["step"]["activations"] < one.phases["step"]["activations"] / 2


def test_a_critic_of_its_own_keeps_a_second_pass(make_run: Make, sampling: Sampling):
    run = make_run(algorithm="ppo", sampling=sampling, texts=Texts(32, 96), reference="base")
    shared, own = (memory(replace(run, critic=kind)).phases["update"]["activations"] for kind in ("shared", "adapter"))
    assert own > 1.2 * shared


def test_scoring_keeps_the_graph_that_the_first_step_learns_from(make_run: Make, sampling: Sampling):
    run = make_run(algorithm="grpo", sampling=sampling._replace(num_minibatches=1), texts=Texts(200, 24))

    def score_and_update(**changes: object) -> list[float]:
        phases = memory(replace(run, **changes)).phases
        return [phases[name]["activations"] for name in ("score", "update")]

    score, update = score_and_update()
    assert score > update, "the reference reads beside the graph, and the backward pass needs less"
    score, update = score_and_update(algorithm="ppo", critic="adapter")
    assert score == update, "two graphs wait, and the backward pass through the second needs more than the reference"
    score, update = score_and_update(token_budget=448)
    assert score < update / 2, "nothing is kept of several passes"


def test_the_cache_has_room_for_prompts_once_and_for_whole_responses(make_run: Make, sampling: Sampling):
    run = make_run(algorithm="grpo", sampling=sampling, texts=Texts(32, 96))
    assert rollout_rows(run) == (8, 4)
    token = 2 * 4 * 64 * 4
    assert memory(run).phases["rollout"]["cache"] == token * (4 * 32 + 8 * 96)
    narrow = replace(run, sampling=sampling._replace(max_cache_tokens=500))
    assert rollout_rows(narrow) == (4, 2)


def test_prompts_are_kept_where_all_that_may_be_drawn_fits_one_pass(make_run: Make, sampling: Sampling):
    """Eight prompts of 32 tokens with two responses of at most 96 each: 8 * (32 + 192) tokens."""
    one_step = sampling._replace(num_minibatches=1)
    run = make_run(algorithm="grpo", sampling=one_step, texts=Texts(32, 24), token_budget=8 * 224)
    kept = memory(run).phases["rollout"]["kept of prompts"]
    # All eight, though four are drawn from at a time; the last of four layers keeps input, keys and values alone.
    # Of the others each head keeps its softmax weights: a prompt is one block of 32 by 32.
    inner = 4 * (2 * 128 + 2 * 128 + 2 * 64 + 2 * 352) + 8 + 4 * 4 * 32
    last, angles = 4 * (128 + 2 * 64) + 4, 2 * 4 * 32
    assert kept == 8 * 32 * (3 * inner + last + angles)
    for change in (
        {"token_budget": 8 * 224 - 1},
        {"sampling": sampling},
        {"is_sharded": True, "num_ranks": 1},
        {"backbone": replace(run.backbone, gradient_checkpointing=True)},
    ):
        assert memory(replace(run, **change)).phases["rollout"]["kept of prompts"] == 0


def test_copies_of_weights_are_a_cpus(make_run: Make, sampling: Sampling):
    run = make_run(algorithm="grpo", sampling=sampling._replace(max_copy_bytes=10_000))
    assert memory(run).phases["rollout"]["copies of weights"] == 10_000
    assert memory(replace(run, device="cuda")).phases["rollout"]["copies of weights"] == 0


def test_sharding_parts_what_is_held_and_gathers_layers(make_run: Make):
    whole, parted = memory(make_run()), memory(make_run(num_ranks=4, is_sharded=True))
    assert parted.roles["base"] == -(-whole.roles["base"] // 4)
    assert parted.roles["gathered layers"] > 0
    assert memory(make_run(num_ranks=4)).roles["base"] == whole.roles["base"]


def test_models_beside_and_the_context_are_counted(make_run: Make, sampling: Sampling):
    run = make_run(algorithm="grpo", sampling=sampling, device="cuda", beside=(Beside("judge", None, "none", "auto"),))
    roles = memory(run).roles
    assert roles["CUDA context"] == CONTEXT
    assert roles["judge"] == roles["base"] - 4 * 128 * 500


def test_a_quantised_model_peaks_while_it_is_loaded(make_run: Make):
    needed = memory(make_run(backbone={"quantization": "nf4"}, texts=Texts(1, 1), batch_size=1))
    assert sum(needed.phases["loading"].values()) == 4 * 128 * 500
    assert needed.peak == max(needed.peaks.values())
