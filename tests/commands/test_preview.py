"""preview from the command line: what it shows of files and configurations, one row, and errors in one line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from transformers import PreTrainedModel

from lit_rlhf.cli import main
from lit_rlhf.commands import preview as command
from lit_rlhf.commands.preview_screen import _FACTS
from tests.tiny_vision import draw

PAGE = (Path(__file__).parents[2] / "docs/preview.md").read_text(encoding="utf-8")
GOOD = {"prompt": "Question", "chosen": " yes", "rejected": " no"}
THUMB = {"prompt": "Question", "completion": " yes", "label": True}
STEPS = {"prompt": "Question", "completions": ["One.", "Two."], "labels": [1, 0]}
CHAT = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def no_model(monkeypatch):
    """Nothing here may build a model or read the weights of one."""
    monkeypatch.setattr(PreTrainedModel, "__init__", lambda *_, **__: pytest.fail("a model was built"))
    monkeypatch.setattr(PreTrainedModel, "from_pretrained", lambda *_, **__: pytest.fail("a model was loaded"))


@pytest.fixture
def write(tmp_path):
    def write(name, *rows):
        lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return name

    return write


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory, tiny_tokenizer):
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def preview(capsys, tokenizer_folder):
    """What ``preview FILE ...`` prints, with the tiny tokenizer."""

    def preview(*words):
        tokenizer = () if "--config" in words else ("--tokenizer", tokenizer_folder)
        main(["preview", *words, *tokenizer])
        return capsys.readouterr().out

    return preview


@pytest.fixture
def refused(capsys):
    """The one line that a command ends with."""

    def refused(*words):
        with pytest.raises(SystemExit) as end:
            main(["preview", *words])
        assert end.value.code == 2
        said = capsys.readouterr().err.strip()
        assert said.startswith("error: ")
        assert "\n" not in said
        return said.removeprefix("error: ")

    return refused


def test_a_file_is_shown_with_what_is_trained_in_brackets(preview, write):
    out = preview(write("a.jsonl", GOOD, {**GOOD, "prompt": "Other"}))
    assert "read as --kind pairs" in out
    assert "2, all read" in out
    assert "TRL preference, explicit (2)" in out
    assert "2 of 2 examples (100 %)" in out
    assert "a.jsonl:1  TRL preference, explicit\nprompt  " in out
    assert "<s>Question\nchosen" in out
    assert "〚 yes</s>〛\nrejected" in out
    assert out.rstrip().endswith("an epoch: 1 step of 16 rows")
    assert "\x1b" not in out


@pytest.mark.parametrize(
    ("row", "kind", "title"),
    [
        (GOOD, "pairs", "chosen"),
        (THUMB, "unpaired", "thumb up"),
        ({"prompt": "Q", "responses": ["a", "b"]}, "graded", "rank 0, graded unknown"),
        (STEPS, "steps", "steps judged 1, 0"),
        (CHAT, "sft", "text"),
        ({"prompt": "Q"}, "prompts", "prompt"),
    ],
)
def test_rows_tell_what_they_are_for(preview, write, row, kind, title):
    broken = "{", {"foo": 1}
    out = preview(write("a.jsonl", *broken, row))
    assert f"read as --kind {kind}" in out
    assert f"\n{title}  " in out


def test_what_stands_in_brackets_is_told(preview, write):
    out = preview(write("a.jsonl", GOOD))
    assert "trained tokens stand in 〚 〛" in out
    assert ", all trained\n" in out
    out = preview("a.jsonl", "--kind", "graded")
    assert "graded tokens stand in 〚 〛" in out
    assert ", all graded\n〚 yes</s>〛" in out
    out = preview(write("steps.jsonl", STEPS))
    assert "judged tokens stand in 〚 〛" in out
    assert ", 2 judged\nOne.〚\n〛Two.〚\n〛</s>" in out
    assert "without a stop token" not in out


def test_kind_overrules_the_rows(preview, write):
    assert "〚 yes</s>〛" in preview(write("a.jsonl", GOOD), "--kind", "sft")
    out = preview("a.jsonl", "--kind", "prompts", "--max_length", "2")
    assert "〚" not in out.partition("a.jsonl:1")[2]
    assert "for max_prompt_length 2" in out


def test_of_a_large_file_a_sample_is_read(preview, write):
    out = preview(write("a.jsonl", *[{**GOOD, "prompt": f"Question {at}"} for at in range(3000)]), "--rows", "100")
    assert "100 of 3,000, from all over it" in out
    assert "100 of 100 examples" in out
    assert "an epoch: 188 steps of 16 rows" in out


def test_reports_of_lost_rows_say_what_training_would_do(preview, write):
    out = preview(write("a.jsonl", GOOD, {**GOOD, "chosen": ""}, {**GOOD, "rejected": ""}))
    assert "2 examples (66.7 %), listed below" in out
    assert "empty_response" in out
    assert "a.jsonl:2: 'chosen' has an empty response" in out
    assert "training would stop at empty_response; on_bad_row drop leaves such rows out" in out


def test_examples_are_as_many_as_are_asked_for(preview, write):
    write("a.jsonl", *[GOOD] * 5)
    assert preview("a.jsonl", "--show", "0").count("TRL preference, explicit\n") == 0
    assert preview("a.jsonl", "--show", "2").count("TRL preference, explicit\n") == 2


def test_a_row_is_shown_alone_and_whole(preview, write):
    write("a.jsonl", GOOD, {**GOOD, "prompt": "word " * 200, "id": "\x1b[31m"})
    assert "tokens, which --row shows" in preview("a.jsonl")
    out = preview("a.jsonl", "--row", "a.jsonl:2")
    assert '"id": "\\u001b[31m"' in out
    assert "which --row shows" not in out
    assert out.count("word") == 400
    assert "epoch" not in out


def test_a_lost_row_is_shown_as_it_stands(preview, write):
    write(
        "a.jsonl",
        GOOD,
        '{"prompt": "x", [/b] \x1b[31m',
        {**GOOD, "rejected": " yes"},
        '{"prompt": "\\ud800", "chosen": 1}',
    )
    out = preview("a.jsonl", "--row", "a.jsonl:2")
    assert '{"prompt": "x", [/b] \\x1b[31m' in out
    assert "lost (broken_json): a.jsonl:2: line is not JSON" in out
    assert "lost (identical_responses): a.jsonl:3" in preview("a.jsonl", "--row", "a.jsonl:3")
    assert '"prompt": "\\ud800"' in preview("a.jsonl", "--row", "a.jsonl:4")


def test_colours_are_for_terminals_that_want_them(preview, write, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    out = preview(write("a.jsonl", GOOD))
    assert "\x1b[32m yes" in out  # green
    assert "\x1b[1;35m</s>" in out  # bold magenta
    assert "\x1b[2mQuestion" in out  # dim
    monkeypatch.setenv("NO_COLOR", "1")
    assert "[32m" not in preview("a.jsonl")


def test_a_screen_of_80_columns_is_kept(preview, write, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    out = preview(write("a" * 90 + ".jsonl", GOOD, {"foo": "x " * 99}, {**GOOD, "prompt": "word " * 99}))
    assert max(map(len, out.splitlines())) <= 80


def test_warnings_are_lines_of_the_screen(preview, write):
    template = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
    config = {"class_path": "datamodules.SFTDataModule", "init_args": {"train": write("a.jsonl", CHAT, CHAT)}}
    config["init_args"]["chat_template"] = template
    out = preview("--config", written(config))
    assert "2 examples (100 %) without a stop token at the end" in out
    assert out.count("warning: the chat template writes no special token") == 1


def written(data, name="run.yaml"):
    """A configuration of DPO, with these data, as a file."""
    backbone = {"name_or_path": "embedded:tiny_llama"}
    optimizer = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.001}}
    model = {"class_path": "lit_rlhf.DPOModule", "init_args": {"backbone": backbone, "optimizer": optimizer}}
    with open(name, "w", encoding="utf-8") as file:
        yaml.safe_dump({"model": model, **({"data": data} if data else {})}, file)
    return name


@pytest.fixture
def config(write):
    rows = write("train.jsonl", GOOD, {**GOOD, "prompt": "Question " * 30})
    init_args = {"train": rows, "validation": write("held_out.jsonl", GOOD)}
    return written({"class_path": "datamodules.PreferenceDataModule", "init_args": init_args})


def test_a_configuration_is_read_as_fit_would(preview, config):
    out = preview(
        "--config", config, "--data.init_args.max_length", "40", "--data.init_args.batch_size=2", "--show", "1"
    )
    assert "train.jsonl" in out
    assert "for max_length 40" in out
    assert "train.jsonl:1  TRL preference, explicit\n" in out
    assert "train.jsonl:2" not in out
    assert "an epoch: 1 step of 2 rows" in out
    assert "held_out.jsonl:1" in preview("--config", config, "--split", "validation")


def test_sources_have_shares_of_an_epoch(preview, config, write):
    write("other.jsonl", *[GOOD] * 8)
    sources = json.dumps([{"path": "train.jsonl", "weight": 3}, {"path": "other.jsonl", "weight": 0.25, "name": "few"}])
    out = preview("--config", config, "--data.init_args.train", sources)
    table = [line.split() for line in out[out.index("source ") :].splitlines()]
    assert table[1][:5] == ["train.jsonl", "3", "6", "75.0", "%"]
    assert table[2][:5] == ["few", "0.25", "2", "25.0", "%"]
    assert "an epoch: 1 step of 16 rows" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "nothing to look at; give --config configs/dpo.yaml, or files"),
        (("a.jsonll",), "data.train: no file 'a.jsonll'; did you mean 'a.jsonl'?"),
        (("run.yaml",), "run.yaml is a configuration; give it as --config run.yaml"),
        (("a.jsonl", "--sho", "3"), "unknown option --sho; keys of a configuration need --config"),
        (("a.jsonl", "--rows", "0"), "--rows: '0' is not a number of at least 1"),
        (("a.jsonl", "--show", "-1"), "--show: '-1' is not a number of at least 0"),
        (("a.jsonl", "--kind", "dpo"), "--kind: invalid choice: 'dpo'"),
        (("a.jsonl", "--row", "b.jsonl:1"), "no source has the row 'b.jsonl:1'; addresses begin with 'a.jsonl'"),
        (("a.jsonl", "--row", "a.jsonl:9"), "there is no row 'a.jsonl:9'"),
        (("a.jsonl", "--tokenizer", "."), "tokenizer '.' cannot be loaded: "),
        (("a.jsonl", "--tokenizer", "no/such/folder"), "tokenizer 'no/such/folder' cannot be loaded: "),
        (("a.jsonl", "--tokenizer", "some/name"), "tokenizer 'some/name' cannot be loaded: "),
        (("blank.jsonl",), "no rows in blank.jsonl"),
        (("picture.png",), "data.train: 'picture.png' is of an unknown type"),
        (("--config", "no.yaml"), "config: File does not exist"),
        (("--config", "broken.yaml"), "broken YAML broken.yaml: "),
        (("--config", "without.yaml"), "the configuration has no `data`"),
        (
            ("--config", "other.yaml"),
            "'lightning.pytorch.demos.boring_classes.BoringDataModule' is not of the packages",
        ),
        (
            ("--trust", "lightning.pytorch.demos", "--config", "other.yaml"),
            "data.class_path is BoringDataModule, of which preview knows nothing",
        ),
        (("--config", "run.yaml", "a.jsonl"), "'a.jsonl' belongs to no option; give --config or files, not both"),
        (("--config", "run.yaml", "--data.init_args.seed", "1", "x"), "'x' belongs to no option"),
        (("--config", "run.yaml", "--tokenizer", "x"), "a configuration takes --data.init_args.tokenizer"),
        (("--config", "run.yaml", "--data.init_args.max_lenght", "5"), "unknown key; did you mean 'max_length'?"),
        (("--config", "run.yaml", "--split", "test"), "data.test is not set"),
    ],
)
def test_errors_are_one_line(refused, write, config, words, message):
    write("a.jsonl", GOOD)
    write("blank.jsonl", " ", "\t")
    write("picture.png", "PNG")
    write("broken.yaml", "data: [", "  a: b")
    written(None, "without.yaml")
    written({"class_path": "lightning.pytorch.demos.boring_classes.BoringDataModule"}, "other.yaml")
    assert message in refused(*words)


def test_chat_rows_need_a_template(refused, write, tiny_tokenizer, tmp_path):
    tiny_tokenizer.save_pretrained(tmp_path / "plain")
    (tmp_path / "plain" / "chat_template.jinja").unlink()
    write("a.jsonl", CHAT)
    assert "a.jsonl:1: the row is a conversation, but tokenizer 'plain' has no chat template" in refused(
        "a.jsonl", "--tokenizer", "plain"
    )


def test_bytes_that_are_no_text_are_lost_rows(preview, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(bytes(range(128, 256)) * 20 + b"\n\xff\xfe\n")
    out = preview("a.jsonl")
    assert "0 of 2 examples" in out
    assert "bad_encoding" in out


def test_names_and_rows_are_no_markup(preview, write):
    rows = {**GOOD, "chosen": " [/red]", "rejected": " \x1b[31m"}, {"[/oops]\x07": 1}
    out = preview(write("[b]x.jsonl", *rows))
    assert "[b]x.jsonl:1" in out
    assert "〚 [/red]</s>〛" in out
    assert "〚 \\x1b[31m</s>〛" in out
    assert "'[/oops]" in out
    assert set(out) & {"\x1b", "\x07"} == set()


def test_every_file_of_the_real_data_is_read(preview, shared_data):
    files = sorted(file for file in shared_data.rglob("*.json*") if file.parent.parent.name != "models")
    assert len(files) > 15
    for file in files:
        out = preview(str(file), "--rows", "20", "--show", "1")
        assert " of 20 examples" in out or "all read" in out, file
        assert "an epoch: " in out, file
        assert "unknown_form" not in out, file


def test_the_page_shows_what_is_printed(capsys, write, monkeypatch):
    answers = {"chosen": "Of course! It lives in a sty.", "rejected": "It lives in a stable, go away."}
    rows = [{"question": f"Where does animal {number} live?", **answers} for number in range(40)]
    rows[6]["chosen"] = ""
    for number in (10, 11, 12):
        rows[number]["question"] = "Tell me about it, please. " * 60
    write("pairs.jsonl", *rows[:20], rows[19], *rows[21:])
    monkeypatch.setenv("COLUMNS", "100")
    main(["preview", "pairs.jsonl", "--show", "1", "--max_length", "512"])
    shown = PAGE.partition("--max_length 512\ntokens are")[2].partition("\n```")[0]
    assert capsys.readouterr().out.rstrip() == f"tokens are{shown}"


def test_the_page_explains_every_line_and_option():
    assert [label for label, *_ in _FACTS if f"| `{label}` |" not in PAGE] == []
    options = [action.option_strings[-1] for action in command._parser()._actions if action.dest != "help"]
    assert [option for option in options if f"| `{option} " not in PAGE] == []


def test_prompts_and_texts_are_shown_one_after_the_other(capsys, write):
    """Each with the tokenizer of the backbone; a row by whatever reads it; what is held out has prompts alone."""
    write("asked.jsonl", {"prompt": "Who?"})
    write("told.jsonl", {"text": "A fox."}, CHAT)
    data = {"prompts": {"train": "asked.jsonl", "validation": "asked.jsonl"}, "texts": {"train": "told.jsonl"}}
    settings = {"data": {"class_path": "datamodules.PromptAndTextDataModule", "init_args": data}}
    Path("mix.yaml").write_text(yaml.safe_dump(settings))
    root = Path(__file__).parents[2]
    configs = ["--config", str(root / "configs/ppo.yaml"), "--config", "mix.yaml"]

    def shown(*words):
        main(["preview", *configs, *words])
        return capsys.readouterr().out

    whole = shown()
    places = [whole.index(word) for word in (" prompts ", "asked.jsonl:1  ", " texts ", "told.jsonl:1  ")]
    assert places == sorted(places)
    assert whole.count("an epoch: 1 step of 16 rows") == 2
    row = shown("--row", "told.jsonl:2")
    assert "Hello" in row
    assert "asked" not in row
    held_out = shown("--split", "validation")
    assert "asked.jsonl:1" in held_out
    assert "told" not in held_out
    with pytest.raises(SystemExit):
        shown("--row", "other.jsonl:1")
    assert "no source has the row 'other.jsonl:1'" in capsys.readouterr().err


def test_pictures_are_shown_by_size_tokens_and_digest(capsys, write, tiny_llava, tmp_path):
    draw(tmp_path / "a.png", (40, 30))
    rows = [{**GOOD, "prompt": "<image><image>?", "images": ["a.png", "a.png"]}, {**GOOD, "images": ["b.png"]}, GOOD]
    file = write("pairs.jsonl", *rows)
    main(["preview", file, "--tokenizer", str(tiny_llava)])
    shown = capsys.readouterr().out
    assert re.search(r"pictures +3, 2 seen, 1 different; 16 tokens each", shown)
    assert re.search(r"missing_image +1 +pairs\.jsonl:2: images\[0\]: no file 'b\.png' lies in", shown)
    lines = re.findall(r"picture (\d)  40 x 30 pixels, 16 tokens, ([0-9a-f]{8})\n", shown)
    assert [number for number, _ in lines] == ["1", "2"]
    assert lines[0][1] == lines[1][1]
    assert "<image> x 32?" in shown
    main(["preview", file])
    assert re.search(r"pictures +3, none of which the model sees", capsys.readouterr().out)
