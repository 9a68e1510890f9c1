"""What ``benchmarks/data.py`` reads: rows, files and a tokenizer, the same on every machine.

The text is made of invented words that follow Zipf's law, cut from one long stretch at random places. Lengths are
log-normal, with the medians of helpful dialogues: questions of 100 characters, answers of 350.
"""

from __future__ import annotations

import gzip
import itertools
import json
import math
import os
import random
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, TextIO

from data_meter import Job, do

Row = dict[str, Any]

SEED = 0
ONSETS = ["", *"bcdfghjklmnprstvwz", "br", "ch", "cl", "gr", "pl", "pr", "qu", "sh", "st", "th", "tr"]
VOWELS = [*"aeiou", "ai", "ea", "ee", "ie", "oo", "ou", "\u00e9", "\u00fc"]
CODAS = ["", "", *"dlmnrst", "ck", "ing", "ly", "nk", "ng", "nt", "ss", "st", "tion"]
NUM_WORDS, STRETCH = 30_000, 1_000_000
SHORTEST, LONGEST = 60, 8000  # characters; the shortest is longer than any two words
SPECIAL = ["<pad>", "<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>"]
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message.role + '|>' + message.content + eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@cache
def stretch() -> str:
    """A million words, as sentences and paragraphs."""
    rng = random.Random(SEED)
    words: dict[str, None] = {}
    while len(words) < NUM_WORDS:
        num_syllables = 1 + (len(words) > 500) + (len(words) > 5000)  # frequent words are short
        parts = (rng.choice(kind) for _ in range(num_syllables) for kind in (ONSETS, VOWELS, CODAS))
        words["".join(parts)] = None
    weights = itertools.accumulate(1 / (rank + 2.7) for rank in range(NUM_WORDS))
    drawn = iter(rng.choices(list(words), cum_weights=list(weights), k=STRETCH))
    sentences = []
    while sentence := list(itertools.islice(drawn, rng.randint(4, 24))):
        sentences.append(" ".join(sentence).capitalize() + rng.choice(("." * 8) + "?!" + ":"))
    return "".join(sentence + ("\n\n" if rng.random() < 0.1 else " ") for sentence in sentences)


def text(rng: random.Random, median: int) -> str:
    """Words of about ``median`` characters together."""
    num_characters = int(min(max(rng.lognormvariate(math.log(median), 0.8), SHORTEST), LONGEST))
    whole = stretch()
    begin = whole.index(" ", rng.randrange(len(whole) - 2 * LONGEST)) + 1
    return whole[begin : whole.rindex(" ", begin, begin + num_characters)]


def conversation(rng: random.Random) -> Row:
    """A pair as messages: prompt, chosen, rejected."""
    prompt = [{"role": "system", "content": text(rng, 100)}] if rng.random() < 0.2 else []
    for _ in range(rng.choice((0, 0, 0, 1, 1, 2))):
        prompt += [{"role": "user", "content": text(rng, 100)}, {"role": "assistant", "content": text(rng, 350)}]
    prompt.append({"role": "user", "content": text(rng, 100)})
    answers = {key: [{"role": "assistant", "content": text(rng, 350)}] for key in ("chosen", "rejected")}
    return {"prompt": prompt, **answers}


def dialogue(rng: random.Random) -> Row:
    """A pair as two whole dialogues in Anthropic's HH strings."""
    row = conversation(rng)
    names = {"system": "Human", "user": "Human", "assistant": "Assistant"}
    prompt = "".join(f"\n\n{names[turn['role']]}: {turn['content']}" for turn in row["prompt"])
    return {key: f"{prompt}\n\nAssistant: {row[key][0]['content']}" for key in ("chosen", "rejected")}


FORMS: dict[str, Callable[[random.Random], Row]] = {"text": dialogue, "conversation": conversation}


def generate(form: str) -> Iterator[Row]:
    """Endless rows of one of :data:`FORMS`."""
    rng = random.Random(f"{SEED}/{form}")
    while True:
        yield FORMS[form](rng)


def usable(file: Path) -> Iterator[Row]:
    """Rows of a file of preferences that every side keeps: TRL trains on empty answers, we refuse them."""
    with gzip.open(file, "rt", encoding="utf-8") if file.suffix == ".gz" else file.open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            texts = [
                row[key] if isinstance(row[key], str) else row[key][-1]["content"] for key in ("chosen", "rejected")
            ]
            if texts[0] != texts[1] and all(
                text.strip() and not text.rstrip().endswith("Assistant:") for text in texts
            ):
                yield row


def make_rows(job: Job) -> dict[str, Any]:
    """Write rows as lines of JSON: ``num_rows`` of them, or ``num_bytes``, or the usable ones of ``rows``."""
    rows = usable(Path(job["rows"])) if job.get("rows") else generate(job["form"])
    num_rows = num_bytes = 0
    with open(job["file"], "wb") as out:
        for row in itertools.islice(rows, job.get("num_rows")):
            num_rows += 1
            num_bytes += out.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
            if num_bytes >= job.get("num_bytes", math.inf):
                break
        os.fsync(out.fileno())
    return {"num_rows": num_rows, "num_bytes": num_bytes}


def texts_of(value: Any) -> Iterator[str]:
    """Every text inside a row."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from texts_of(part)


def make_tokenizer(job: Job) -> dict[str, Any]:
    """Train a byte-level BPE on the rows of ``file``; like Llama's, it adds <s> before a text."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    words = Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
    split = pre_tokenizers.Split(words, behavior="isolated")
    bpe.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=job["vocabulary"],
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    with open(job["file"], encoding="utf-8") as lines:
        bpe.train_from_iterator((text for line in lines for text in texts_of(json.loads(line))), trainer)
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(job["folder"])
    return {"vocabulary": len(tokenizer)}


def _write_csv(rows: list[Row], file: str) -> None:
    import csv

    with open(file, "w", encoding="utf-8", newline="") as out:
        writer = csv.DictWriter(out, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def _write_lines(rows: Iterable[Row], out: TextIO) -> None:
    out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _write_gz(rows: list[Row], file: str) -> None:
    with gzip.open(file, "wt", encoding="utf-8", compresslevel=6) as out:
        _write_lines(rows, out)


def _write_jsonl(rows: list[Row], file: str) -> None:
    with open(file, "w", encoding="utf-8") as out:
        _write_lines(rows, out)


def _write_json(rows: list[Row], file: str) -> None:
    Path(file).write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")


def _write_parquet(rows: list[Row], file: str) -> None:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(rows), file)


def _write_arrow(rows: list[Row], file: str) -> None:
    import pyarrow

    table = pyarrow.Table.from_pylist(rows)
    with pyarrow.OSFile(file, "wb") as out, pyarrow.ipc.new_stream(out, table.schema) as writer:
        writer.write_table(table, max_chunksize=1000)


FILE_TYPES: dict[str, Callable[[list[Row], str], None]] = {
    ".jsonl": _write_jsonl,
    ".jsonl.gz": _write_gz,
    ".json": _write_json,
    ".parquet": _write_parquet,
    ".csv": _write_csv,
    ".arrow": _write_arrow,
}


def convert(job: Job) -> dict[str, Any]:
    """Write the rows of ``file`` (lines of JSON) as a file of type ``suffix``, named ``out``."""
    with open(job["file"], encoding="utf-8") as lines:
        FILE_TYPES[job["suffix"]]([json.loads(line) for line in lines], job["out"])
    return {"num_bytes": Path(job["out"]).stat().st_size}


if __name__ == "__main__":
    do({"rows": make_rows, "tokenizer": make_tokenizer, "convert": convert})
