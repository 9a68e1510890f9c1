"""docs/data.md keeps its word: its code runs, its settings are read, and every reason for losing a row is explained."""

from __future__ import annotations

import inspect
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

import datamodules
from datamodules import PreferenceDataModule, PromptAndTextDataModule, PromptDataModule, SFTDataModule, Source
from datamodules.readers.opening import SUFFIXES
from lit_rlhf import types
from lit_rlhf.commands.training import read_data

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/data.md").read_text(encoding="utf-8")
FORMS = (ROOT / "docs/data_formats.md").read_text(encoding="utf-8")
MODEL = "meta-llama/Llama-3.2-1B-Instruct"
PAIR = {"prompt": "1 + 1 =", "chosen": " 2", "rejected": " 3"}
ASKED, LIKED, DISLIKED = (
    {"speaker": "CUSTOMER", "words": "Hi"},
    {"speaker": "AGENT", "words": "Hello"},
    {"speaker": "AGENT", "words": "No"},
)
CHAT = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
FILES = {
    "pairs.jsonl": PAIR,
    "held_out.jsonl": PAIR,
    "dialogues.jsonl": {"dialogue": [ASKED], "better": LIKED, "worse": DISLIKED},
    "more/pairs.jsonl": PAIR,
    "mine.jsonl": {"ask": "1 + 1?", "better": "2", "worse": "3"},
    "thumbs.jsonl": {"prompt": "1 + 1 =", "completion": " 2", "label": True},
    "chats.jsonl": CHAT,
    "grades.jsonl": {"prompt": "1 + 1 =", "response": " 2", "helpfulness": 4, "correctness": None},
    "steps.jsonl": {"prompt": "1 + 1 + 1 =", "completions": ["1 + 1 is 2.", "2 + 1 is 4."], "labels": [True, False]},
    "bench.jsonl": {**PAIR, "subset": "sums"},
}
ENTRY = {"file_name": "mine.jsonl", "columns": {"prompt": "ask", "chosen": "better", "rejected": "worse"}}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def named(pattern: str) -> set[str]:
    """Words in code quotes inside of what a pattern finds."""
    return {word for cell in re.findall(pattern, PAGE, re.MULTILINE) for word in re.findall(r"`([\w/]+)`", cell)}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "more").mkdir()
    for name, row in FILES.items():
        (tmp_path / name).write_text(f"{json.dumps(row)}\n" * 20)
    pq.write_table(pa.Table.from_pylist([PAIR] * 20), tmp_path / "ultra.parquet")
    (tmp_path / "dataset_info.json").write_text(json.dumps({"my_pairs": ENTRY}))
    return tmp_path


@pytest.mark.parametrize("number", range(2))
def test_its_code_runs(number: int, tiny_llama: Callable[..., Path], folder: Path, capsys: pytest.CaptureFixture[str]):
    code = blocks("python")
    assert len(code) == 2
    names: dict[str, object] = {}
    exec(code[number].replace(MODEL, str(tiny_llama())), names)
    data = names["data"]
    assert isinstance(data, (PreferenceDataModule, SFTDataModule)[number])
    if number == 0:  # twice 20 rows, a quarter of 20, and 20
        assert sum(map(int, re.findall(r"^(\d+) \{", capsys.readouterr().out, re.MULTILINE))) == 65
    else:
        assert data.summary() == {"texts": 16}


MIXED = {"ours": 40, "ultra.parquet": 5, "dialogues.jsonl": 20, "more": 20, "my_pairs": 20}

PROMPTS_AND_TEXTS = {"pairs.jsonl": 20, "chats.jsonl": 20}


SEEN = [MIXED, {"thumbs.jsonl": 20}, {"grades.jsonl": 20}, {"steps.jsonl": 20}, PROMPTS_AND_TEXTS, {"sums": 20}]


def test_it_shows_these_settings_and_no_others():
    assert len(blocks("yaml")) == len(SEEN)


@pytest.mark.parametrize(("number", "rows"), list(enumerate(SEEN)))
def test_its_settings_are_read(number: int, rows: dict[str, int], folder: Path):
    settings = yaml.safe_load((ROOT / "configs/dpo.yaml").read_text()) | yaml.safe_load(blocks("yaml")[number])
    Path("run.yaml").write_text(yaml.safe_dump(settings))
    data = read_data(["--config", "run.yaml"])
    assert isinstance(data, PromptAndTextDataModule if rows is PROMPTS_AND_TEXTS else PreferenceDataModule)
    loader = data.test_dataloader() if number == SEEN.index({"sums": 20}) else data.train_dataloader()
    assert Counter(source for batch in loader for source in sources_of(batch)) == rows


def sources_of(batch: Any) -> list[str]:
    if isinstance(batch, types.PromptAndTextBatch):
        return [prompt.source for prompt in batch.prompts.prompts] + sources_of(batch.texts)
    return [source for part in batch.micro_batches for source in part.sources]


def test_every_key_and_type_is_named():
    keys = named(r"^\| (`path`.*?|`weight`|`name`|`config`.*?|`columns`.*?|`limit`) \|")
    assert keys == set(inspect.signature(Source).parameters)
    assert [suffix for suffix in SUFFIXES if not suffix.endswith(".gz") and f"{suffix}`" not in PAGE] == []
    responses = (types.PreferencePairs, types.UnpairedResponses, types.GradedResponses, types.JudgedSteps)
    for kind in (*responses, types.Instructions, types.Forest, types.Prompt):
        assert [name for name in kind._fields if f"`{name}`" not in PAGE] == []


def test_every_reason_for_losing_a_row_is_explained():
    code = "".join(path.read_text(encoding="utf-8") for path in Path(datamodules.__path__[0]).rglob("*.py"))
    reasons = set(re.findall(r"(?:BadRowError|TooLongError|Broken)\(\s*\"(\w+)\"", code))
    assert len(reasons) > 20
    explained = re.findall(r"`(\w+)`", "".join(re.findall(r"^\| `.*?` \|", PAGE + FORMS, re.MULTILINE)))
    assert reasons - set(explained) == set()


@pytest.mark.parametrize("module", [PreferenceDataModule, SFTDataModule, PromptDataModule])
def test_what_may_change_before_resuming(module: type, folder: Path, tiny_llama: Callable[..., Path]):
    options = {"train": "pairs.jsonl", "tokenizer": str(tiny_llama())}
    state = module(**options).state_dict()
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere" / "pairs.jsonl").write_text((folder / "pairs.jsonl").read_text())
    moved = {**options, "train": "elsewhere/pairs.jsonl"}
    module(**moved, num_workers=3, truncation="drop", on_bad_row="drop").load_state_dict(state)
    refused = [{"seed": 1}, {"batch_size": 3}, {"shuffle_buffer": 7}]
    refused += [{"train": train} for train in (["pairs.jsonl"] * 2, "held_out.jsonl", [Source("pairs.jsonl", limit=3)])]
    for change in refused:
        with pytest.raises(ValueError, match="the checkpoint was saved with"):
            module(**{**options, **change}).load_state_dict(state)
