"""What is counted, by hand on small files; what is shown of an example; and that neither needs a model."""

from __future__ import annotations

import json
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from datamodules.inspection import Piece, inspect, pieces, special_ids, visible
from datamodules.making import BatchMaker
from datamodules.preference import PreferenceDataModule
from datamodules.prompt import PromptDataModule
from datamodules.sft import SFTDataModule
from tests.tiny_vision import draw

ROOT = Path(__file__).parents[2]
ENDING = ("</s>", True)


def pair(number, chosen=" yes", rejected=" no", **more):
    return {"prompt": f"Question {number}", "chosen": chosen, "rejected": rejected, **more}


def report_on(data, split="train", **options):
    (report,) = inspect(data, split, **options)
    return report


@pytest.fixture
def preferences(tiny_tokenizer):
    return lambda rows, **options: PreferenceDataModule(train=rows, tokenizer=tiny_tokenizer, **options)


def number_of_tokens(tokenizer, text):
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])


def test_lengths_are_those_of_the_tokens_before_the_cut(preferences, tiny_tokenizer):
    report = report_on(preferences([pair(1, chosen=" yes" * 30), pair(2)], max_length=20))
    prompt = 1 + number_of_tokens(tiny_tokenizer, "Question 1")  # and <s>
    long, short = (number_of_tokens(tiny_tokenizer, " yes" * times) + 1 for times in (30, 1))
    assert report.lengths == {
        "prompt": [prompt] * 2,
        "response": [long, short],
        "whole": [prompt + long, prompt + short],
    }
    assert report.truncated == {"response": 1, "prompt": 1}


def test_what_is_lost_is_counted_by_reason_with_the_first_address(preferences):
    rows = [pair(1), pair(2, chosen=""), {"foo": 1}, pair(3, chosen=""), pair(4, chosen=" a" * 90)]
    report = report_on(preferences(rows, max_length=30, truncation="drop"))
    assert {reason: (loss.number, loss.address, loss.is_length) for reason, loss in report.lost.items()} == {
        "empty_response": (2, "train:2", False),
        "unknown_form": (1, "train:3", False),
        "too_long": (1, "train:5", True),
    }
    assert (report.num_found, report.num_used, report.num_lost) == (5, 1, 4)
    assert report.lost["too_long"].message.endswith("above max_length=30")


def test_forms_are_counted_where_rows_mix(preferences):
    report = report_on(preferences([pair(1), pair(2), {"question": "q", "chosen": "a", "rejected": "b"}]))
    assert report.forms == {"TRL preference, explicit": 2, "Axolotl preference": 1}


def test_pairs_and_the_longer_of_them(preferences):
    ranked = {"prompt": "Q", "responses": [" a b c", " a b", " a"], "scores": [1.0, 2.0, 3.0]}
    report = report_on(preferences([pair(1, " a b c", " a"), pair(2, " 8", " 9"), ranked]))
    assert (report.num_used, report.num_counted, report.num_pairs) == (3, 5, 5)
    assert report.num_chosen_longer == 1  # the ranking prefers the shorter one three times; one pair is even
    assert report_on(preferences([ranked], pairing="best_worst")).num_pairs == 1
    long = pair(1, " 7" * 60, " 8" * 50)  # cut to the same length, and the first is the longer one all the same
    cut = report_on(preferences([long], max_length=24, truncation="response_right"))
    assert (cut.num_chosen_longer, cut.num_pairs) == (1, 1)


def test_what_says_the_same_is_a_repetition_unless_its_pictures_differ(preferences):
    assert report_on(preferences([pair(1), pair(2), {**pair(1), "id": 7}, pair(1)])).num_repeated == 2
    rows = [pair(1, images=["a.png"]), pair(1, images=["b.png"])]
    assert report_on(preferences(rows, images="ignore")).num_repeated == 0
    assert report_on(preferences(rows)).num_images == 2


def test_pictures_are_counted_and_their_pixels_not_kept(tiny_llava, tmp_path):
    draw(tmp_path / "a.png", (40, 30))
    rows = [pair(number, images=["a.png"]) for number in (1, 2, 2)] + [pair(3, images=["b.png"]), pair(4)]
    report = report_on(PreferenceDataModule(train=rows, tokenizer=str(tiny_llava), image_dir=str(tmp_path)))
    assert (report.num_images, report.image_tokens, len(report.images), report.num_repeated) == (4, [16] * 3, 1, 1)
    assert {reason: loss.number for reason, loss in report.lost.items()} == {"missing_image": 1}
    (seen,) = report.shown[0].tokens.pictures
    assert (seen.size, seen.picture.num_tokens, seen.picture.inputs) == ((40, 30), 16, {})
    assert report.shown[0].whole.pictures == (seen,)


def chat(*texts):
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[at % 2], "content": text} for at, text in enumerate(texts)]}


@pytest.mark.filterwarnings("ignore:the chat template writes no special token")
def test_a_template_without_a_stop_token_is_found_out(tiny_tokenizer):
    rows = [chat("Hi", "Hello"), chat("Hi", "Bye")]
    endless = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
    with_white_space = endless.replace("{% endfor %}", "{{ eos_token }}\n{% endfor %}")
    for template, number in ((None, 0), (endless, 2), (with_white_space, 0)):
        tokenizer = deepcopy(tiny_tokenizer)
        data = SFTDataModule(train=rows, tokenizer=tokenizer, chat_template=template)
        assert report_on(data).num_endless == number, template


def test_white_space_behind_a_stop_token_is_no_matter(tiny_tokenizer):
    row = {"chosen": chat("Hi", "Hello")["messages"], "rejected": chat("Hi", "Go")["messages"]}
    for ending, number in (("{{ eos_token }}\n", 0), ("\n", 1)):
        template = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}" + ending + "{% endfor %}"
        data = PreferenceDataModule(train=[row], tokenizer=deepcopy(tiny_tokenizer), chat_template=template)
        assert [piece.trained[-1] for piece in outcome_of(data)[1:]] == [True, True]
        assert report_on(data).num_endless == number


def test_an_answer_that_is_cut_is_not_called_endless(preferences):
    report = report_on(preferences([pair(1, " yes" * 50, " no" * 50)], max_length=20))
    assert report.truncated["response"] == 1
    assert report.num_endless == 0


def test_a_row_in_tokens_without_an_end_is_endless(preferences, tiny_tokenizer):
    stop = tiny_tokenizer.eos_token_id
    rows = [
        {"prompt_ids": [10, 11], "chosen_ids": [12, stop], "rejected_ids": [13, stop]},
        {"prompt_ids": [10, 11], "chosen_ids": [12, stop], "rejected_ids": [14]},
    ]
    assert report_on(preferences(rows)).num_endless == 1


def test_whether_an_answer_ends_is_of_no_matter_to_who_judges_it(preferences):
    steps = {"prompt": "Q", "completions": ["a", "b"], "labels": [1, None]}
    assert report_on(preferences([steps], kind="steps")).num_endless == 0
    endless = {"prompt_ids": [10, 11], "chosen_ids": [12], "rejected_ids": [13]}
    assert report_on(preferences([endless], kind="graded")).num_endless == 0
    assert report_on(preferences([endless])).num_endless == 1


def titles(data):
    return [piece.title for piece in outcome_of(data)]


def test_titles_tell_what_is_known_of_a_response(preferences):
    row = {"prompt": "Q", "responses": [" a", " b"], "scores": [1, 2.5], "style": [None, 7]}
    graded = preferences([row], kind="graded", objectives=["score", "style"])
    assert titles(graded) == ["prompt", "rank 0, graded 2.5, 7", "rank 1, graded 1, unknown"]
    assert titles(preferences([row], kind="graded", objectives=[])) == ["prompt", "rank 0", "rank 1"]
    assert titles(preferences([row])) == ["prompt", "chosen", "rejected"]


def test_the_ends_of_judged_steps_are_marked(preferences, tiny_tokenizer):
    steps = {"prompt": "Q", "completions": ["ab", "cd", "ef"], "labels": [1, None, 0.5]}
    data = preferences([steps], kind="steps")
    assert titles(data) == ["prompt", "steps judged 1, 0.5"]
    piece = outcome_of(data)[1]
    marked = [place for place, is_marked in enumerate(piece.trained) if is_marked]
    assert [tiny_tokenizer.decode(piece.tokens[: place + 1]) for place in marked] == ["ab\n", "ab\ncd\nef\n"]


def test_a_step_is_measured_where_it_is_full(preferences, tiny_tokenizer):
    rows = [pair(number) for number in range(10)]
    size = 1 + number_of_tokens(tiny_tokenizer, "Question 1") + 2
    size += number_of_tokens(tiny_tokenizer, " yes") + number_of_tokens(tiny_tokenizer, " no")
    report = report_on(preferences(rows, batch_size=4, token_budget=2 * size))
    assert report.steps == [(4 * size, 2)] * 2
    assert report.num_tokens == 10 * size
    assert report_on(preferences(rows, batch_size=16)).steps == [(10 * size, 1)]


def test_lost_rows_leave_a_step_smaller(preferences):
    rows = [pair(number % 10) if number % 2 else {"foo": 1} for number in range(40)]
    report = report_on(preferences(rows, batch_size=8))
    (tokens,) = {tokens for tokens, _ in report.steps}
    assert (len(report.steps), tokens) == (5, report.num_tokens / 5)


def test_every_source_has_a_report_of_its_own(tmp_path, tiny_tokenizer):
    for name, number in (("a", 3), ("b", 5)):
        lines = "".join(json.dumps(pair(at)) + "\n" for at in range(number))
        (tmp_path / f"{name}.jsonl").write_text(lines)
    data = PreferenceDataModule(train=["a.jsonl", "b.jsonl"], validation="b.jsonl", tokenizer=tiny_tokenizer)
    assert [(report.source.name, report.num_used) for report in inspect(data, "train")] == [
        ("a.jsonl", 3),
        ("b.jsonl", 5),
    ]
    report = report_on(data, "validation", max_rows=4, num_shown=2)
    assert (len(report.sample.rows), report.sample.num_rows) == (4, 5)
    assert [outcome.row.address for outcome in report.shown] == ["b.jsonl:1", "b.jsonl:2"]


def test_bad_rows_are_told_whatever_training_would_do_with_them(preferences):
    for on_bad_row in ("raise", "drop"):
        assert report_on(preferences([pair(1), {"foo": 1}], on_bad_row=on_bad_row)).num_lost == 1


def outcome_of(data):
    task = data.task()
    (outcome,) = BatchMaker(task).outcomes(list(data.sources("train")[0].read()))
    return pieces(outcome, task)


def test_pieces_of_a_pair(preferences, tiny_tokenizer):
    prompt, chosen, rejected = outcome_of(preferences([pair(1)]))
    assert [prompt.title, chosen.title, rejected.title] == ["prompt", "chosen", "rejected"]
    assert not any(prompt.trained)
    assert all(chosen.trained)
    assert visible(tiny_tokenizer, prompt.tokens) == [("<s>", True), ("Question 1", False)]
    assert visible(tiny_tokenizer, chosen.tokens) == [(" yes", False), ENDING]
    assert visible(tiny_tokenizer, rejected.tokens) == [(" no", False), ENDING]


def test_pieces_of_a_ranking_name_what_lies_in_between(preferences, tiny_tokenizer):
    ranked = {"prompt": "Q", "responses": [" a", " b", " c"], "scores": [1.0, 3.0, 2.0]}
    _, *responses = outcome_of(preferences([ranked]))
    assert {piece.title: visible(tiny_tokenizer, piece.tokens)[0][0] for piece in responses} == {
        "chosen": " b",
        "in between": " c",
        "rejected": " a",
    }


def test_pieces_of_thumbs_texts_and_prompts(preferences, tiny_tokenizer):
    thumb = {"prompt": "Q", "completion": " a", "label": False}
    assert [piece.title for piece in outcome_of(preferences([thumb], kind="unpaired"))] == ["prompt", "thumb down"]
    (text,) = outcome_of(SFTDataModule(train=[chat("Hi", "Yes", "So", "No")], tokenizer=tiny_tokenizer))
    trained = [token for token, is_trained in zip(text.tokens, text.trained, strict=True) if is_trained]
    assert visible(tiny_tokenizer, trained) == [("Yes", False), ENDING, ("No", False), ENDING]
    (prompt,) = outcome_of(PromptDataModule(train=[{"prompt": "Hi"}], tokenizer=tiny_tokenizer))
    assert prompt == Piece("prompt", prompt.tokens, [False] * len(prompt.tokens))


def test_a_space_at_the_beginning_stays_with_tokenizers_that_leave_it_out():
    words = Tokenizer(models.WordLevel({"\u2581a": 0, "\u2581cat": 1, "</s>": 2}, unk_token="</s>"))
    words.pre_tokenizer = pre_tokenizers.Metaspace()
    words.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>")
    assert tokenizer.decode([1]) == "cat"
    assert visible(tokenizer, [1, 2, 1, 0]) == [(" cat", False), ENDING, (" cat a", False)]


def test_special_tokens_of_templates_are_among_them(tiny_tokenizer):
    names = set(tiny_tokenizer.convert_ids_to_tokens(sorted(special_ids(tiny_tokenizer))))
    assert names >= {"<s>", "</s>", "<pad>"}
    assert "a" not in names


def test_no_rows_make_an_empty_report(tmp_path, tiny_tokenizer):
    (tmp_path / "a.jsonl").write_text("\n \n")
    report = report_on(PreferenceDataModule(train="a.jsonl", tokenizer=tiny_tokenizer))
    assert (report.num_found, report.steps, report.lengths, report.shown) == (0, [], {}, [])


def test_a_split_that_is_not_set_is_refused(preferences):
    with pytest.raises(ValueError, match=r"data\.validation is not set"):
        next(inspect(preferences([pair(1)]), "validation"))


def test_no_model_is_imported():
    models = {"peft", "transformers.modeling_utils", "transformers.models.llama.modeling_llama"}
    code = f"import sys, datamodules.inspection; print({models} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
