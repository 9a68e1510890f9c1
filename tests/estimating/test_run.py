"""What follows from the sizes of a run."""

from __future__ import annotations

from collections.abc import Callable

from lit_rlhf.estimating.run import Run, Sampling, Texts


def test_tokens_of_a_step_share_prompts(make_run: Callable[..., Run]):
    run = make_run(batch_size=8, texts=Texts(10, 20, 2))
    assert run.step_tokens == 8 * 50
    assert run.pass_scored == 8 * 40


def test_a_budget_bounds_a_pass_and_one_long_text_exceeds_it(make_run: Callable[..., Run]):
    run = make_run(batch_size=8, texts=Texts(10, 20, 2), token_budget=100)
    assert (run.pass_tokens, run.num_passes) == (100, 4)
    assert make_run(texts=Texts(100, 200, 2), token_budget=10).pass_tokens == 500


def test_ranks_divide_a_batch(make_run: Callable[..., Run]):
    assert make_run(batch_size=8, num_ranks=4).step_tokens == make_run(batch_size=2).step_tokens


def test_an_iteration_is_learnt_from_in_minibatches(make_run: Callable[..., Run], sampling: Sampling):
    run = make_run(batch_size=8, texts=Texts(10, 20, 1), sampling=sampling)
    assert run.step_tokens == 8 * 30  # 16 responses in two portions, each with its prompt


def test_a_reward_model_reads_ends_alone(make_run: Callable[..., Run]):
    assert make_run(algorithm="reward", texts=Texts(10, 20, 2), batch_size=8).pass_scored == 16
