"""Rows with pictures through the data modules: tokens, pictures and text by hand, for two kinds of models."""

from __future__ import annotations

import json
import re
import resource
from copy import deepcopy

import datasets
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer

from datamodules import PreferenceDataModule, PromptDataModule, SFTDataModule
from datamodules.encoding.prompts import PromptEncoder
from lit_rlhf.types import PromptBatch
from tests.tiny_vision import draw

# As the LLaVA models of the hub have it: blocks alone, pictures first, a space after every text.
IMAGES_FIRST = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for block in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for block in message['content'] | selectattr('type', 'equalto', 'text') %}{{ block['text'] + ' ' }}{% endfor %}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT: ' }}{% endif %}"
)
TEXT_ALONE = (
    "{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
)
MODELS = {"tiny_llava": ("<image>", ""), "tiny_qwen2_vl": ("<|image_pad|>", "<|vision_start|> <|vision_end|>")}
USES = {
    "pairs": (PreferenceDataModule, {"kind": "pairs"}),
    "thumbs": (PreferenceDataModule, {"kind": "unpaired"}),
    "grades": (PreferenceDataModule, {"kind": "graded"}),
    "texts": (SFTDataModule, {}),
    "prompts": (PromptDataModule, {}),
}


def talk(*contents):
    return [{"role": ("user", "assistant")[at % 2], "content": content} for at, content in enumerate(contents)]


def pair(prompt, *images, chosen="red", rejected="blue", **more):
    chosen, rejected = ([{"role": "assistant", "content": text}] for text in (chosen, rejected))
    images = {"images": list(images)} if images else {}
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **images, **more}


@pytest.fixture(params=MODELS)
def model(request):
    return request.getfixturevalue(request.param), MODELS[request.param][0]


@pytest.fixture
def rows(tmp_path):
    """Writes rows beside three pictures, as a file."""
    for name, size, colour in (("a", (40, 30), "red"), ("b", (16, 24), "blue"), ("c", (1, 1), "green")):
        draw(tmp_path / "img" / f"{name}.png", size, colour)

    def write(*rows):
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(file)

    return write


def batch_of(make, train, folder, **options):
    (batch,) = make(train=train, tokenizer=str(folder), shuffle_buffer=0, **options).train_dataloader()
    return batch


def shown(batch, folder, mark):
    """(text, pictures) of every prompt or segment, each run of image tokens as one mark with its length."""
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def text(ids):
        return re.sub(f"(?:{re.escape(mark)})+", lambda run: f"<{len(run[0]) // len(mark)}>", tokenizer.decode(ids))

    if isinstance(batch, PromptBatch):
        return [(text(prompt.tokens), prompt.pictures) for prompt in batch.prompts]
    (part,) = batch.micro_batches
    forest, held = part.forest, [[] for _ in part.forest.lengths]
    for picture, holder in zip(forest.pictures, forest.holders, strict=True):
        held[holder].append(picture)
    pieces = forest.tokens.split(forest.lengths)
    return [(text(ids), tuple(pictures)) for ids, pictures in zip(pieces, held, strict=True)]


def sizes(pictures):
    return [picture.num_tokens for picture in pictures]


def test_pairs_with_two_pictures_one_and_none(model, rows):
    folder, mark = model
    file = rows(
        pair(talk("<image>\nand <image>?"), "img/a.png", "img/b.png"),
        pair(talk("no <image> here")),
        pair(talk("what?"), "img/c.png"),
    )
    found = shown(batch_of(PreferenceDataModule, file, folder), folder, mark)
    if mark == "<image>":
        assert [(text, sizes(pictures)) for text, pictures in found] == [
            ("<s><|user|><16>\nand <16>?<|assistant|>", [16, 16]), ("red</s>", []), ("blue</s>", []),
            ("<s><|user|>no <1> here<|assistant|>", []), ("red</s>", []), ("blue</s>", []),
            ("<s><|user|><16>what?<|assistant|>", [16]), ("red</s>", []), ("blue</s>", []),
        ]  # fmt: skip
    else:
        begin, end = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
        first, second, third = (f"<|vision_start|><{number}><|vision_end|>" for number in (12, 6, 1))
        assert [(text, sizes(pictures)) for text, pictures in found if not text.endswith("<|im_end|>\n")] == [
            (f"{begin}{first}\nand {second}?{end}", [12, 6]),
            (f"{begin}no <image> here{end}", []),
            (f"{begin}{third}what?{end}", [1]),
        ]


def test_image_tokens_stand_for_pictures_and_for_nothing_else(model, rows):
    folder, mark = model
    token = AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids(mark)
    said = f"{mark} <image> <|image_pad|>"
    talked = pair(talk(f"{said}?"), chosen=said, rejected="blue")
    plain = {"prompt": f"{said}?", "chosen": said, "rejected": "blue"}
    with_pictures = [{**row, "prompt": "<image>?", "images": ["img/a.png"]} for row in (talked, plain)]
    with_pictures[0]["prompt"] = talk("<image>?")
    for use, (make, options) in USES.items():
        batch = batch_of(make, rows(talked, plain, *with_pictures), folder, **options)
        for ids, pictures in (
            [(p.tokens, p.pictures) for p in batch.prompts]
            if use == "prompts"
            else [(part.forest.tokens.tolist(), part.forest.pictures) for part in batch.micro_batches]
        ):
            assert list(ids).count(token) == sum(sizes(pictures)), use
        if use != "prompts":
            (part,) = batch.micro_batches
            assert len(part.forest.pictures) == 2
            assert not (part.forest.tokens[part.forest.targets] == token).any()
            text = AutoTokenizer.from_pretrained(folder).decode(part.forest.tokens[part.forest.targets])
            assert said in text


def test_every_use_of_a_row_shows_the_same_prompt(model, rows):
    folder, mark = model
    file = rows(pair(talk("<image>what?"), "img/a.png"))
    prompts = {
        use: shown(batch_of(make, file, folder, **options), folder, mark)[0] for use, (make, options) in USES.items()
    }
    text, (picture,) = prompts.pop("prompts")
    for use, (other, pictures) in prompts.items():
        assert other.startswith(text), use
        assert [one.digest for one in pictures] == [picture.digest], use
        assert torch.equal(pictures[0].inputs["pixel_values"], picture.inputs["pixel_values"])


def test_blocks_plain_text_and_a_column_without_marks(model, rows):
    folder, mark = model
    blocks = [
        {"type": "text", "text": "Look: "},
        {"type": "image", "image": "img/a.png"},
        {"type": "text", "text": "."},
    ]
    file = rows(
        pair([{"role": "user", "content": blocks}]),
        {"prompt": "Look: <image>.", "chosen": " red", "rejected": " blue", "image": "img/a.png"},
        {"prompt": "Look.", "chosen": " red", "rejected": " blue", "images": ["img/a.png"]},
    )
    prompts = [text for text, pictures in shown(batch_of(PreferenceDataModule, file, folder), folder, mark) if pictures]
    number = "<16>" if mark == "<image>" else "<|vision_start|><12><|vision_end|>"
    assert f"Look: {number}." in prompts[0]
    assert prompts[1:] == [f"<s>Look: {number}.", f"<s>{number}Look."]


@pytest.mark.parametrize("template", [IMAGES_FIRST, TEXT_ALONE], ids=["blocks alone", "text alone"])
@pytest.mark.parametrize("make", [PreferenceDataModule, SFTDataModule, PromptDataModule])
def test_templates_of_blocks_alone_and_of_text_alone(tiny_llava, rows, template, make):
    file = rows(pair(talk("<image>what?"), "img/a.png"), pair(talk("why?", "so", "what?"), chosen="no"))
    batch = batch_of(make, file, tiny_llava, chat_template=template)
    found = shown(batch, tiny_llava, "<image>")
    text = "".join(text for text, _ in found)
    assert [sizes(pictures) for _, pictures in found if pictures] == [[16]]
    if template == IMAGES_FIRST:
        assert "USER: <16>\nwhat? ASSISTANT: " in text
        assert "USER: why? ASSISTANT: so </s>USER: what? ASSISTANT: " in text
    else:
        assert "[user] <16>what?</s>[assistant] " in text
        assert "[user] why?</s>[assistant] so</s>[user] what?</s>[assistant] " in text
    if make is SFTDataModule:
        (part,) = batch.micro_batches
        trained = AutoTokenizer.from_pretrained(tiny_llava).decode(part.forest.tokens[part.forest.targets])
        assert trained.replace(" ", "") == "red</s>so</s>no</s>"


def test_a_template_that_leaves_pictures_out_is_told(tiny_llava, rows):
    file = rows(pair(talk("<image>what?"), "img/a.png"))
    template = "{% for message in messages %}{{ message['content'] | replace('<image>', '') }}{% endfor %}"
    with pytest.raises(
        ValueError, match=r"jsonl:1: the chat template writes 0 marks '<image>' for 1 pictures; set data\.chat"
    ):
        batch_of(PreferenceDataModule, file, tiny_llava, chat_template=template)


def test_turns_after_the_first_may_show_pictures(model, rows):
    folder, mark = model
    file = rows({"messages": talk("<image>what?", "red", "and <image>?", "blue"), "images": ["img/a.png", "img/b.png"]})
    batch = batch_of(SFTDataModule, file, folder)
    ((text, pictures),) = shown(batch, folder, mark)
    assert len(pictures) == 2
    assert len(re.findall(r"<\d+>", text)) == 2
    forest = batch.micro_batches[0].forest
    trained = AutoTokenizer.from_pretrained(folder).decode(forest.tokens[forest.targets], skip_special_tokens=True)
    assert trained == "redblue"
    everything = batch_of(SFTDataModule, file, folder, trained="all").micro_batches[0].forest
    assert len(everything.targets) == len(everything.tokens) - 1 - sum(sizes(pictures))


def test_rows_in_tokens_have_one_mark_for_each_picture(tiny_llava, rows):
    mark = AutoTokenizer.from_pretrained(tiny_llava).convert_tokens_to_ids("<image>")
    good = {"prompt_ids": [1, mark, 9], "chosen_ids": [10], "rejected_ids": [11], "images": ["img/a.png"]}
    bad = [{**good, "prompt_ids": [1, 9]}, {**good, "images": None}, {**good, "chosen_ids": [mark]}]
    file = rows(good, *bad)
    batch = batch_of(PreferenceDataModule, file, tiny_llava, on_bad_row="drop")
    assert batch.micro_batches[0].forest.tokens.tolist() == [1, *[mark] * 16, 9, 10, 11]
    assert batch.notes["dropped/image_marks"] == 3
    assert len(batch_of(PromptDataModule, rows(good), tiny_llava).prompts[0].tokens) == 18
    assert batch_of(SFTDataModule, rows(good), tiny_llava).micro_batches[0].forest.lengths == (19,)


@pytest.mark.parametrize(
    ("make", "options", "reason"),
    [
        (PreferenceDataModule, {"max_length": 24}, "cut_image"),
        (PreferenceDataModule, {"max_length": 24, "truncation": "drop"}, "too_long"),
        (SFTDataModule, {"max_length": 24}, "cut_image"),
        (SFTDataModule, {"max_length": 24, "truncation": "response_right"}, "prompt_too_long"),
        (PromptDataModule, {"max_prompt_length": 18}, "cut_image"),
        (PromptDataModule, {"max_prompt_length": 20, "truncation": "drop"}, "prompt_too_long"),
    ],
)
@pytest.mark.filterwarnings("ignore:dropped")
def test_no_picture_is_cut(tiny_llava, rows, make, options, reason):
    file = rows(pair(talk("a long way to the " * 5 + "<image>?"), "img/a.png", chosen="r" * 20, rejected="b" * 20))
    assert batch_of(make, file, tiny_llava, **options).notes == {f"dropped/{reason}": 1}


def test_text_before_a_picture_may_be_cut(tiny_llava, rows):
    file = rows(pair(talk("a long way to the " * 5 + "<image>?"), "img/a.png"))
    ((text, pictures),) = shown(
        batch_of(PromptDataModule, file, tiny_llava, max_prompt_length=24), tiny_llava, "<image>"
    )
    assert text.startswith("<s>")
    assert text.endswith("<16>?<|assistant|>")
    assert sizes(pictures) == [16]


def test_pictures_behind_the_cut_are_not_cut_off(tiny_llava, rows):
    file = rows({"messages": talk("what?", "red", "and <image>?", "blue"), "images": ["img/a.png"]})
    with pytest.warns(
        UserWarning, match=r"jsonl:1: has 35 tokens with those of its pictures; to cut them to max_length=20"
    ):
        batch = batch_of(SFTDataModule, file, tiny_llava, max_length=20)
    assert batch.notes == {"dropped/cut_image": 1}


BAD = {
    "missing_image": "img/z.png",
    "image_outside": "../a.png",
    "remote_image": "https://a/b.png",
    "broken_image": "data:image/png;base64,AAAA",
    "huge_image": "huge.png",
}


@pytest.mark.parametrize("use", USES)
def test_bad_pictures_are_bad_rows_with_an_address(tiny_llava, rows, tmp_path, use):
    Image.new("1", (8200, 8200)).save(tmp_path / "huge.png")
    make, options = USES[use]
    good = pair(talk("<image>?"), "img/a.png")
    file = rows(good, *({**good, "images": [bad]} for bad in BAD.values()))
    batch = batch_of(make, file, tiny_llava, on_bad_row="drop", **options)
    dropped = {name: count for name, count in batch.notes.items() if name.startswith("dropped/")}
    assert dropped == {f"dropped/{reason}": 1 for reason in BAD}
    with pytest.raises(ValueError, match=r"rows\.jsonl:2: images\[0\]: no file 'img/z\.png' .*data\.on_bad_row=drop"):
        batch_of(make, file, tiny_llava, **options)


def test_who_ignores_pictures_sees_none_and_opens_none(model, rows):
    folder, mark = model
    file = rows(pair(talk("<image>what?"), "nowhere.png"))
    with pytest.warns(UserWarning, match="its pictures are not seen, as data.images=ignore says"):
        batch = batch_of(PreferenceDataModule, file, folder, images="ignore")
    (part,) = batch.micro_batches
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (part.forest.pictures, batch.notes["ignored/images"]) == ((), 1)
    assert tokenizer.convert_tokens_to_ids(mark) not in part.forest.tokens
    assert "<image>what?" in tokenizer.decode(part.forest.tokens)


def test_frames_that_nobody_sees_are_counted(tiny_llava, rows, tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    file = rows(pair(talk("<image><image>?"), "moving.gif", "moving.gif"), pair(talk("<image>?"), "moving.gif"))
    with pytest.warns(UserWarning, match=r"rows\.jsonl:1: a picture moves, and only its first frame is seen") as told:
        batch = batch_of(PreferenceDataModule, file, tiny_llava)
    assert (len(told), batch.notes["ignored/frames"]) == (1, 3)


def test_prompts_hand_their_pictures_to_reward_functions(tiny_llava, rows, tmp_path):
    content = (tmp_path / "img" / "a.png").read_bytes() if (tmp_path / "img").exists() else b""
    image = Image.open(tmp_path / "img" / "b.png")
    given = [{"prompt": "<image><image>?", "images": [image, {"bytes": content}], "answer": "red"}]
    (prompt,) = batch_of(PromptDataModule, given, tiny_llava).prompts
    assert prompt.columns == {"answer": "red", "images": [image, content]}
    (prompt,) = batch_of(PromptDataModule, rows({"prompt": "?", "image": "img/a.png"}), tiny_llava).prompts
    assert prompt.columns == {"images": [str(tmp_path / "img" / "a.png")]}
    (prompt,) = batch_of(PromptDataModule, rows({"prompt": "?"}), tiny_llava).prompts
    assert prompt.columns == {}


@pytest.mark.filterwarnings("ignore:.*its pictures are not seen")
def test_reward_functions_may_look_where_the_policy_does_not(tiny_llava, rows, tmp_path):
    file = rows({"prompt": "?", "images": ["img/a.png", "../b.png"]})
    (prompt,) = batch_of(PromptDataModule, file, tiny_llava, images="ignore").prompts
    assert prompt.pictures == ()
    assert prompt.columns == {"images": [str(tmp_path / "img" / "a.png"), None]}


@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet"])
def test_paths_are_relative_to_the_file_and_not_to_where_the_run_was_begun(tiny_llava, tmp_path, suffix):
    draw(tmp_path / "far" / "away" / "a.png")
    row = [{"prompt": "?", "image": "away/a.png"}]
    getattr(datasets.Dataset.from_list(row), "to_parquet" if suffix == "parquet" else "to_json")(f"far/rows.{suffix}")
    assert len(batch_of(PromptDataModule, f"far/rows.{suffix}", tiny_llava).prompts[0].pictures) == 1
    assert len(batch_of(PromptDataModule, str(tmp_path / "far"), tiny_llava).prompts[0].pictures) == 1


def test_columns_of_the_datasets_library(tiny_llava, rows, tmp_path):
    images = [Image.open(tmp_path / "img" / f"{name}.png") for name in "ab"]
    train = datasets.Dataset.from_list([pair("<image>?", images[0]), pair("<image><image>?", *images)])
    for given in (train, train.to_iterable_dataset()):
        batch = batch_of(PreferenceDataModule, given, tiny_llava)
        digests = [picture.digest for picture in batch.micro_batches[0].forest.pictures]
        assert len(digests) == 3
        assert digests[0] == digests[1] != digests[2]


def test_image_dir_stands_for_the_folder_of_the_file(tiny_llava, rows, tmp_path):
    file = rows({"prompt": "?", "image": "a.png"})
    batch = batch_of(PromptDataModule, file, tiny_llava, image_dir=str(tmp_path / "img"))
    assert len(batch.prompts[0].pictures) == 1


def test_workers_and_a_restart_see_the_same_pictures(tiny_llava, rows):
    file = rows(*(pair(talk(f"<image>{number}?"), f"img/{'abc'[number % 3]}.png") for number in range(12)))

    def seen(num_workers=0, state=None):
        data = PreferenceDataModule(train=file, tokenizer=str(tiny_llava), batch_size=4, num_workers=num_workers)
        if state is not None:
            data.load_state_dict(state)
        return data, [
            [(picture.digest, part.rows) for part in batch.micro_batches for picture in part.forest.pictures]
            for batch in data.train_dataloader()
        ]

    data, whole = seen()
    assert seen(num_workers=2)[1] == whole
    assert len({digest for batch in whole for digest, _ in batch}) == 3
    (first, *_) = data.train_dataloader()
    state = {**data.state_dict(), "cursor": list(first.cursor)}
    assert seen(state=deepcopy(state))[1] == whole[1:]


def test_a_worker_may_hand_over_more_pictures_than_files_may_be_open(tiny_llava, rows):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    file = rows(*[pair(talk("<image>?"), "img/a.png")] * 160)
    resource.setrlimit(resource.RLIMIT_NOFILE, (160, hard))
    try:
        batch = batch_of(PreferenceDataModule, file, tiny_llava, batch_size=160, token_budget=10**5, num_workers=1)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(batch.micro_batches[0].forest.pictures) == 160


def test_encoders_without_a_reader_refuse_pictures(tiny_tokenizer, rows):
    from datamodules.forms import read_row
    from datamodules.records import BadRowError

    (record,) = read_row({"prompt": "?", "image": "img/a.png"})
    with pytest.raises(BadRowError, match="reads text alone"):
        PromptEncoder(tiny_tokenizer, 8).render(record)


def test_real_pictures(tiny_llava, shared_data):
    data = PreferenceDataModule(
        validation=str(shared_data / "nlvr" / "color_pairs_test.jsonl"), tokenizer=str(tiny_llava), batch_size=16
    )
    batch = next(iter(data.val_dataloader()))
    assert batch.num_pairs == 16
    pictures = [picture for part in batch.micro_batches for picture in part.forest.pictures]
    assert len(pictures) == 16
    assert len({picture.digest for picture in pictures}) > 4
