"""Answers before, during and after training."""

from __future__ import annotations

import json

import torch

from lit_rlhf.callbacks.samples import SampleTable, prompts_of
from lit_rlhf.types import Forest, Picture, Segment


def rows_of(folder):
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


def test_prompts_are_the_roots_that_have_children():
    shared, unanswered = Segment([5, 6], [False, False]), Segment([7, 8], [False, False])
    empty = Segment([], [])
    pair = [shared, Segment([1], [True], 0), Segment([2], [True], 0)]
    assert prompts_of(Forest.pack([pair, [unanswered], [empty, Segment([3], [False], 0)]])) == [([5, 6], ())]


def test_the_prompt_of_a_text_is_what_comes_before_its_last_answer():
    flags = ([0, 1, 1], [0, 1, 1, 0, 0, 1, 1, 1, 0], [0, 0, 1, 0])
    texts = [[Segment([10 * n + at for at in range(len(row))], [*map(bool, row)])] for n, row in enumerate(flags, 1)]
    assert [tokens for tokens, _ in prompts_of(Forest.pack(texts))] == [[10], [20, 21, 22, 23, 24], [30, 31]]


def test_pictures_come_with_the_prompt_that_shows_them():
    """Also with a text of which the last picture stands behind the answer; a checkpoint holds them."""
    seen = [Picture({"pixel_values": torch.full((1, 3, 2, 2), float(n))}, n, f"{n}") for n in (1, 2, 3)]
    prompt = Segment([9, 5, 9, 9], [False] * 4, pictures=tuple(seen[:2]))
    text = Segment([9, 9, 6, 9, 9, 9], [False, False, True, False, False, False], pictures=tuple(seen[1:]))
    forest = Forest.pack([[prompt, Segment([1], [True], 0), Segment([2], [True], 0)], [text]])
    assert prompts_of(forest, 9) == [([9, 5, 9, 9], tuple(seen[:2])), ([9, 9], (seen[1],))]
    table, again = SampleTable(), SampleTable()
    table.prompts, table.pictures = [[9, 5, 9, 9], [1]], [tuple(seen[:2]), ()]
    again.load_state_dict(table.state_dict())
    assert (again.prompts, again.pictures) == (table.prompts, table.pictures)
    table.pictures = [(), ()]
    again.load_state_dict(table.state_dict())
    assert again.pictures == [(), ()]


def test_before_and_after(train, policy, tiny_tokenizer, tmp_path, capsys):
    table = SampleTable(num_prompts=2, max_new_tokens=4, temperature=0.0, tokenizer=tiny_tokenizer)
    train(policy(), table, num_sanity_val_steps=1, max_epochs=2)
    rows = rows_of(tmp_path)
    assert [row["step"] for row in rows] == [0, 0, 3, 3, 6, 6]
    assert [row["prompt"] for row in rows[:2]] == ["What is the capital of France?", "Tell me a story."]
    assert any(before["response"] != after["response"] for before, after in zip(rows[:2], rows[-2:], strict=True))
    out = capsys.readouterr().out
    assert "before (step 0)" in out
    assert "after (step 6)" in out


def test_without_validation_the_prompts_come_from_training(train, policy, tiny_tokenizer, tmp_path):
    train(policy(), SampleTable(1, 4, tokenizer=tiny_tokenizer), limit_val_batches=0)
    assert [row["step"] for row in rows_of(tmp_path)] == [0, 3]


def test_greedy_or_sampled_it_leaves_training_as_it_was(train, policy, tiny_llama, tiny_tokenizer):
    def weights(*callbacks):
        torch.manual_seed(3)
        ours = policy(model=fresh())
        train(ours, *callbacks, num_sanity_val_steps=1)
        return [weight.detach().clone() for weight in ours.parameters() if weight.requires_grad], torch.rand(3)

    def fresh():
        from lit_rlhf.models.building import build_backbone
        from lit_rlhf.models.options import BackboneConfig, LoraOptions

        return build_backbone(BackboneConfig(str(tiny_llama()), lora=LoraOptions(r=4, dropout=0.3)), reference="none")

    plain, after_plain = weights()
    for temperature in (0.0, 1.0):
        watched, after = weights(SampleTable(2, 4, temperature, tiny_tokenizer))
        assert all(torch.equal(one, other) for one, other in zip(plain, watched, strict=True))
        assert torch.equal(after, after_plain)


def test_a_resumed_run_keeps_its_beginning(policy, train, tiny_tokenizer, tmp_path):
    first = SampleTable(1, 4, tokenizer=tiny_tokenizer)
    trainer = train(policy(), first)
    trainer.save_checkpoint(tmp_path / "cut.ckpt")
    second = SampleTable(1, 4, tokenizer=tiny_tokenizer)
    train(policy(), second, max_epochs=2, ckpt_path=tmp_path / "cut.ckpt")
    assert [samples.step for samples in second.samples] == [0, 3, 6]
    assert second.samples[:2] == first.samples
    assert [row["step"] for row in rows_of(tmp_path)] == [0, 3, 6]


def test_a_reward_model_answers_nothing(train, reward, tiny_tokenizer, tmp_path):
    table = SampleTable(1, 4, tokenizer=tiny_tokenizer)
    train(reward(), table, num_sanity_val_steps=1)
    assert table.samples == []
    assert not (tmp_path / "samples.jsonl").exists()
