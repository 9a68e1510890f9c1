"""Voices: each answers as its run does alone, on one backbone; what does not belong together is refused."""

from __future__ import annotations

import base64

import pytest
import torch
from peft import PeftModel
from PIL import Image
from transformers import AutoModelForCausalLM

from lit_rlhf.callbacks.prompts import encode
from lit_rlhf.commands.speaking.voices import named_runs
from lit_rlhf.rollout.sampling.token_stream import StreamOptions

GREEDY = StreamOptions(temperature=0.0, max_new_tokens=10)
TALK = [{"role": "user", "content": "What is the capital of France?"}]


def said(voice, prompt=TALK, options=GREEDY, stop=()):
    answer = voice.answer(voice.reader.whole(prompt), options, stop)
    assert "".join(piece.text for piece in answer) == answer.text
    return answer


def test_each_answers_as_plain_hugging_face_does_in_any_order(voices_of, policy_folders, tiny_llama, tiny_tokenizer):
    voices = voices_of("sft", "dpo")
    assert list(voices.by_name) == ["sft", "dpo", "base"]
    expected = {}
    for name in voices.by_name:
        model = AutoModelForCausalLM.from_pretrained(tiny_llama())
        if name != "base":
            model = PeftModel.from_pretrained(model, policy_folders(name))
        tokens = torch.tensor([encode(TALK, tiny_tokenizer)])
        answer = model.eval().generate(input_ids=tokens, max_new_tokens=10, do_sample=False)[0, tokens.shape[1] :]
        expected[name] = tiny_tokenizer.decode(answer, skip_special_tokens=True)
    assert len(set(expected.values())) == 3
    for name in ("dpo", "base", "sft", "dpo", "sft"):
        assert said(voices.by_name[name]).text == expected[name], name


def test_why_an_answer_ended(voices_of):
    voice = voices_of("sft").by_name["sft"]
    voice.stop_tokens = []
    cut = said(voice)
    assert (cut.end, cut.num_tokens) == ("length", 10)
    stopped = said(voice, stop=[cut.text[2:5]])
    assert (stopped.end, stopped.text) == ("stop", cut.text[: cut.text.find(cut.text[2:5])])
    voice.stop_tokens = list(range(320))
    ended = said(voice)
    assert (ended.end, ended.num_tokens, ended.text) == ("stop", 1, "")


def test_an_answer_ends_where_the_model_does(voices_of):
    voice = voices_of("sft").by_name["sft"]
    long = said(voice, "a " * 250, StreamOptions(max_new_tokens=1000))
    assert long.end == "length"
    assert long.num_tokens + len(long.prompt.tokens) == 512


def test_a_whole_model_speaks_alone(voices_of, tiny_llama):
    voices = voices_of(f"whole={tiny_llama()}")
    assert list(voices.by_name) == ["whole"]
    assert said(voices.by_name["whole"]).text == said(voices_of("sft").by_name["base"]).text


def test_names_come_from_folders_or_are_given(tmp_path):
    assert named_runs(["runs/dpo", "old=runs/dpo"]).keys() == {"dpo", "old"}
    (tmp_path / "a=b").mkdir()
    assert named_runs([str(tmp_path / "a=b")]) == {"a=b": tmp_path / "a=b"}
    assert named_runs(["tiny=embedded:tiny_llama"])["tiny"].is_dir()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["runs/dpo", "other/dpo"], "would be called 'dpo', as is runs/dpo: give another name, as NAME=other/dpo"),
        (["runs/base"], "as is the model that all began from"),
    ],
)
def test_two_of_one_name_are_refused(words, message):
    with pytest.raises(ValueError, match=message):
        named_runs(words)


def test_what_does_not_belong_together_is_refused(voices_of, policy_folders, reward_folders, tiny_llama, tmp_path):
    other = policy_folders("alien", base=tiny_llama(seed=9, hidden_size=32))
    with pytest.raises(ValueError, match=r"'alien' was trained on .*tiny_llama\d+, and 'sft' on .*tiny_llama\d+"):
        voices_of("sft", other)
    with pytest.raises(ValueError, match="does not fit"):  # the user says that it is the same base, and it is not
        voices_of("sft", other, "--base", str(tiny_llama()))
    with pytest.raises(ValueError, match="'whole' is a whole model"):
        voices_of("sft", f"whole={tiny_llama()}")
    with pytest.raises(ValueError, match=r"holds a reward model, .* --reward"):
        voices_of("sft", reward_folders())
    with pytest.raises(ValueError, match="there is no such folder"):
        voices_of(tmp_path / "nothing")


def test_a_picture_is_seen_and_kept_between_turns(voices_of, tiny_llava, tmp_path):
    """Answers are those of generate; a turn that shows no other picture is not computed anew."""
    file = tmp_path / "red.png"
    Image.new("RGB", (40, 30), "red").save(file)
    voice = voices_of(f"llava={tiny_llava}").by_name["llava"]
    picture = f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"
    blocks = [{"type": "image", "image": picture}, {"type": "text", "text": "What is this?"}]
    talk = [{"role": "user", "content": blocks}]
    for turn in range(2):
        prompt = voice.reader.whole(talk)
        assert len(prompt.pictures) == 1
        (expected,) = voice.backbone.generate(
            [prompt.tokens], 10, stop_tokens=voice.stop_tokens, temperature=0.0, pictures=[prompt.pictures]
        )
        answer = said(voice, talk)
        assert answer.text == voice.tokenizer.decode(expected, skip_special_tokens=True)
        assert (voice.stream.num_reused > 16) == (turn == 1)
        talk = [*talk, {"role": "assistant", "content": answer.text}, {"role": "user", "content": "And why?"}]
    before_it = [{"role": "user", "content": [{"type": "text", "text": "So: "}, *blocks]}]
    twice = [{"role": "user", "content": [{"type": "image", "image": picture}, *blocks]}]
    Image.new("RGB", (40, 30), "blue").save(file)
    blue = f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"
    another = [{"role": "user", "content": [{"type": "image", "image": blue}, blocks[1]]}]
    for other in (before_it, twice, another):
        said(voice, talk[:1])
        said(voice, other)
        assert voice.stream.num_reused == 0
    assert not voices_of("sft").by_name["sft"].reader.sees
    with pytest.raises(ValueError, match="the model reads text alone"):
        said(voices_of("sft").by_name["sft"], talk)
