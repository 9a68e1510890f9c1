"""The data pipeline alone, from files to batches, beside TRL 1.16 and Hugging Face ``datasets``.

    python benchmarks/data.py --trl-python /path/to/trl/bin/python

1. ``throughput``: tokens per second of processor time, one process on one core, to the end of a file.
2. ``first_batch``: seconds from nothing to the first batch of a large file that the system does not hold in memory.
3. ``resume``: the same for the batch that comes next at 90 % of that file, and whether it is the right one.
4. ``memory``: what the reading process holds while it goes on.
5. ``files``: what the types of files cost.

Fresh process and fresh caches for every measurement, sides alternated, medians. A token is one of prompt + response,
the prompt counted once per response, padding never; nothing is cut. Rows and tokenizer are made here, always the same.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

from side_by_side import commit, hardware

HERE = Path(__file__).parent
SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".parquet", ".csv", ".arrow")
HEAD = 32  # TRL, which prepares everything before the first batch, gets one part in so many of the large file
VOCABULARY = 32_000
COMPARED = {"throughput": "tokens_per_second", "first_batch": "seconds"}  # what lines are compared by, for each job

OURS, TRL, MAP, STREAM = "lit_rlhf", "TRL 1.16 (DPOTrainer)", "datasets (map)", "datasets (streaming)"

Job = dict[str, Any]
Run = dict[str, Any]


class Task(NamedTuple):
    """One line of a table: a job for a side.

    Args:
        name: what the line is called.
        side: whose job it is: ``lit_rlhf``, ``trl`` or ``datasets``.
        what: name of the job.
        job: what the job is told.
        scale: what its seconds are multiplied by, where it was given a part of the data.
    """

    name: str
    side: str
    what: str
    job: Job
    scale: int = 1


class Question(NamedTuple):
    """A table.

    Args:
        heading: what is asked.
        tasks: its lines.
        columns: key and format of each column, by its heading.
    """

    heading: str
    tasks: list[Task]
    columns: dict[str, tuple[str, str]]


class Answer(NamedTuple):
    """What was measured.

    Args:
        question: what was asked.
        runs: every run of every line, by its name.
        summary: the medians, line by line.
    """

    question: Question
    runs: dict[str, list[Run]]
    summary: list[Run]


class Bench:
    """What the questions are asked about; each thing is made when first asked for.

    Args:
        options: the command line.
        work: scratch folder.
    """

    def __init__(self, options: argparse.Namespace, work: Path) -> None:
        self.options = options
        self.work = work
        self.rows = cache(self._rows)
        self.tokenizer = cache(self._tokenizer)

    @cached_property
    def large(self) -> Run:
        """The large file: its path, ``num_rows`` and ``num_bytes``."""
        return self._generate("large", num_bytes=self.options.size)

    @cached_property
    def head(self) -> Run:
        """The beginning of the large file."""
        return self._generate("head", num_bytes=self.options.size // HEAD)

    def converted(self, suffix: str) -> Path:
        """The rows of text as a file of another type."""
        out = self.work / f"converted{suffix}"
        self.run("rows", "convert", {"file": self.rows("text"), "suffix": suffix, "out": str(out)})
        return out

    def job(self, file: str | Path, form: str = "text", **more: Any) -> Job:
        """What every side is told."""
        places = {"file": str(file), "tokenizer": self.tokenizer(form), "scratch": str(self.work / "scratch")}
        return {**places, "batch_size": self.options.batch_size, **more}

    def run(self, side: str, what: str, job: Job) -> Run:
        """Do a job in a fresh process with fresh caches; one whose throughput is measured has one core.

        Raises:
            RuntimeError: if it fails, with the end of what it printed.
        """
        python = self.options.trl_python if side in ("trl", "datasets") else sys.executable
        script = HERE / "sides" / f"data_{side}.py"
        paths = os.pathsep.join([str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
        cores = {max(os.sched_getaffinity(0))} if what == "throughput" else os.sched_getaffinity(0)
        with tempfile.TemporaryDirectory(dir=self.work) as cold:
            out = Path(cold) / "out.json"
            alone = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "HF_HOME": cold}
            done = subprocess.run(
                [python, str(script), what, json.dumps(job), str(out)],
                env={**os.environ, **alone, "PYTHONPATH": paths},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
                preexec_fn=lambda: os.sched_setaffinity(0, cores),
            )
            if done.returncode:
                raise RuntimeError(f"{script.name} {what} {job} failed:\n{done.stdout[-3000:]}")
            return json.loads(out.read_text())

    def _rows(self, form: str) -> str:
        if form == "real":
            return self._generate(form, rows=str(self.options.rows.resolve()), num_rows=self.options.pairs)["file"]
        return self._generate(form, form=form, num_rows=self.options.pairs)["file"]

    def _tokenizer(self, form: str) -> str:
        folder = str(self.work / f"tokenizer_{form}")
        self.run("rows", "tokenizer", {"vocabulary": VOCABULARY, "file": self.rows(form), "folder": folder})
        return folder

    def _generate(self, name: str, **job: Any) -> Run:
        job = {"form": "conversation", **job, "file": str(self.work / f"{name}.jsonl")}
        return {**job, **self.run("rows", "rows", job)}


def throughput(bench: Bench) -> list[Question]:
    """From a file to its last batch."""
    columns = {
        "tokens / CPU s": ("tokens_per_second", "{:,.0f}"),
        "x TRL": ("times", "{:.2f}"),
        "tokens": ("num_tokens", "{:,}"),
        "pairs": ("num_pairs", "{:,}"),
        "CPU s": ("cpu_seconds", "{:.2f}"),
        "of it load": ("load_seconds", "{:.2f}"),
        "prepare": ("prepare_seconds", "{:.2f}"),
        "collate": ("collate_seconds", "{:.2f}"),
    }
    sides = {TRL: "trl", MAP: "datasets", OURS: "lit_rlhf"}
    questions = []
    for form in ("text", "conversation", *(["real"] if bench.options.rows else [])):
        job = bench.job(bench.rows(form), form)
        tasks = [Task(name, side, "throughput", job) for name, side in sides.items()]
        questions.append(Question(f"Throughput on {form} rows, one process on one core", tasks, columns))
    return questions


WAITING = {
    "s to the batch": ("seconds", "{:.2f}"),
    "x ours": ("times", "{:.2f}"),
    "s to count the batches": ("length_seconds", "{:.2f}"),
    "s tokenizer": ("tokenizer_seconds", "{:.2f}"),
    "s imports": ("import_seconds", "{:.2f}"),
    "peak MiB above imports": ("peak_mib", "{:.0f}"),
}


def first_batch(bench: Bench) -> list[Question]:
    """From nothing to the first batch of the large file."""
    job = bench.job(bench.large["file"], streaming=True)
    all_first = f"{TRL}: seconds of 1/{HEAD} of it x {HEAD}"
    tasks = [
        Task(OURS, "lit_rlhf", "first_batch", job),
        Task(f"{OURS}, 2 workers", "lit_rlhf", "first_batch", {**job, "num_workers": 2}),
        Task(STREAM, "datasets", "first_batch", job),
        Task(f"{STREAM}, 2 workers", "datasets", "first_batch", {**job, "num_workers": 2}),
        Task("datasets, all to Arrow first", "datasets", "first_batch", {**job, "streaming": False}),
        Task(all_first, "trl", "first_batch", bench.job(bench.head["file"]), HEAD),
    ]
    return [Question(f"First batch of {in_words(bench.large)}", tasks, WAITING)]


def resume(bench: Bench) -> list[Question]:
    """From nothing to the batch that comes next after a part of the large file."""
    fraction = bench.options.fraction
    job = bench.job(bench.large["file"], streaming=True)
    num_rows = int(fraction * bench.large["num_rows"])
    ours = {**job, **bench.run("lit_rlhf", "place", {**job, "fraction": fraction})}
    theirs = {**job, **bench.run("datasets", "place", {**job, "num_rows": num_rows})}
    skipping = {**job, "skip": num_rows, "next_rows": theirs["next_rows"]}
    tasks = [
        Task(OURS, "lit_rlhf", "first_batch", ours),
        Task(f"{OURS}, 2 workers", "lit_rlhf", "first_batch", {**ours, "num_workers": 2}),
        Task(f"{STREAM}, load_state_dict", "datasets", "first_batch", theirs),
        Task(f"{STREAM}, skip", "datasets", "first_batch", skipping),
    ]
    heading = f"Resuming at {fraction:.0%} of {in_words(bench.large)}"
    return [Question(heading, tasks, {**WAITING, "the rows that were left": ("is_right", "{}")})]


def memory(bench: Bench) -> list[Question]:
    """What reading the large file for a while takes."""
    columns = {
        "MiB at a fifth": ("early_mib", "{:.0f}"),
        "MiB at the end": ("late_mib", "{:.0f}"),
        "peak MiB": ("peak_mib", "{:.0f}"),
        "pairs": ("num_pairs", "{:,}"),
    }
    job = bench.job(bench.large["file"], seconds=bench.options.seconds, streaming=True)
    tasks = [Task(OURS, "lit_rlhf", "memory", job), Task(STREAM, "datasets", "memory", job)]
    heading = f"Memory above imports and tokenizer in {bench.options.seconds:g} s of {in_words(bench.large)}"
    return [Question(heading, tasks, columns)]


def files(bench: Bench) -> list[Question]:
    """The same rows in every type of file."""
    columns = {
        "tokens / CPU s": ("tokens_per_second", "{:,.0f}"),
        "x JSONL": ("times", "{:.2f}"),
        "MB on disk": ("megabytes", "{:.1f}"),
        "tokens": ("num_tokens", "{:,}"),
    }
    tasks = []
    for suffix in SUFFIXES:
        file = bench.converted(suffix)
        tasks.append(Task(suffix, "lit_rlhf", "throughput", bench.job(file, megabytes=file.stat().st_size / 1e6)))
    return [Question("Types of files, the same text rows, one process on one core", tasks, columns)]


QUESTIONS: dict[str, Callable[[Bench], list[Question]]] = {
    function.__name__: function for function in (throughput, first_batch, resume, memory, files)
}


def in_words(large: Run) -> str:
    """The large file, for a heading."""
    return f"a shuffled JSONL file of {large['num_bytes'] / 1e9:.2f} GB ({large['num_rows']:,} conversations)"


def check_tokens(runs: dict[str, list[Run]]) -> None:
    """Refuse to compare sides that did not do the same work; a first and a last token of each sequence may differ.

    Raises:
        ValueError: naming what each side counted.
    """
    pairs, tokens = ({name: measured[0][key] for name, measured in runs.items()} for key in ("num_pairs", "num_tokens"))
    apart = max(tokens.values()) - min(tokens.values())
    if len(set(pairs.values())) > 1 or apart > 2 * 2 * min(pairs.values()):
        raise ValueError(f"all sides must make the same tokens, and did not: {tokens} of {pairs} pairs")


def median(measured: list[Run], key: str) -> float | bool | None:
    """Median of one thing over several runs; of a yes or no, whether it was always yes; None if nobody measured it."""
    values = [run[key] for run in measured if run.get(key) is not None]
    if not values:
        return None
    return all(values) if isinstance(values[0], bool) else statistics.median(values)


def summarise(question: Question, runs: dict[str, list[Run]]) -> list[Run]:
    """Medians of every line, and how they compare with the first."""
    summary = []
    for task in question.tasks:
        measured = [{**task.job, **run} for run in runs[task.name]]
        line: Run = {"name": task.name, **{key: median(measured, key) for key, _ in question.columns.values()}}
        if task.what == "throughput":
            line["tokens_per_second"] = measured[0]["num_tokens"] / median(measured, "cpu_seconds")
        if task.what == "first_batch":
            line["seconds"] *= task.scale
        summary.append(line)
    what = question.tasks[0].what
    if what == "throughput":
        check_tokens(runs)
    if what in COMPARED:
        for line in summary:
            line["times"] = line[COMPARED[what]] / summary[0][COMPARED[what]]
    return summary


def table(question: Question, summary: list[Run]) -> str:
    """The medians as Markdown."""
    rows = [["", *question.columns], ["---"] * (len(question.columns) + 1)]
    for line in summary:
        cells = ["" if line[key] is None else form.format(line[key]) for key, form in question.columns.values()]
        rows.append([line["name"], *cells])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def ask(bench: Bench, question: Question) -> Answer:
    """Measure all lines in turn, several times over."""
    print(f"\n{question.heading}", flush=True)
    runs: dict[str, list[Run]] = {task.name: [] for task in question.tasks}
    for number in range(bench.options.repeats):
        for task in question.tasks:
            runs[task.name].append(run := bench.run(task.side, task.what, task.job))
            said = ", ".join(f"{key} {value:.2f}" for key, value in run.items() if isinstance(value, float))
            print(f"{number + 1}/{bench.options.repeats} {task.name}: {said}", flush=True)
    summary = summarise(question, runs)
    print(table(question, summary), flush=True)
    return Answer(question, runs, summary)


def write(options: argparse.Namespace, answers: list[Answer]) -> Path:
    """JSON with every run, Markdown with the tables."""
    measured = [run for answer in answers for several in answer.runs.values() for run in several]
    facts = {
        "hardware": hardware("cpu"),
        "python": platform.python_version(),
        "versions": {key: value for run in measured for key, value in run.get("versions", {}).items()},
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "vocabulary": VOCABULARY,
        "rows": options.rows.name if options.rows else "generated",
        **{name: getattr(options, name) for name in ("size", "pairs", "batch_size", "repeats")},
    }
    kept = [{"heading": said.question.heading, "summary": said.summary, "runs": said.runs} for said in answers]
    tables = [f"## {said.question.heading}\n\n{table(said.question, said.summary)}\n\n" for said in answers]
    options.out.mkdir(parents=True, exist_ok=True)
    stem = options.out / "data"
    stem.with_suffix(".json").write_text(json.dumps({**facts, "answers": kept}, indent=1) + "\n")
    said = "\n".join(f"- {key}: {value}" for key, value in facts.items())
    stem.with_suffix(".md").write_text(f"# From files to batches\n\n{''.join(tables)}{said}\n")
    return stem.with_suffix(".md")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trl-python", required=True, help="interpreter of an environment with TRL 1.16")
    parser.add_argument("--rows", type=Path, help="real preferences, .jsonl or .jsonl.gz, for one more throughput")
    parser.add_argument("--size", type=lambda text: int(float(text)), default=2 * 10**9, help="bytes of the large file")
    parser.add_argument("--pairs", type=int, default=10_000, help="rows whose throughput is measured, of each form")
    parser.add_argument("--batch-size", type=int, default=16, help="pairs per batch")
    parser.add_argument("--fraction", type=float, default=0.9, help="of the large file, read before the resumption")
    parser.add_argument("--seconds", type=float, default=30, help="how long memory is watched")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="*", choices=QUESTIONS, default=list(QUESTIONS))
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--work", type=Path, default=HERE.parent / "runs" / "benchmark_data", help="left empty")
    return parser.parse_args()


def main() -> None:
    """Ask the questions; what was measured so far is written after each."""
    options = parse()
    options.work.mkdir(parents=True, exist_ok=True)
    answers: list[Answer] = []
    with tempfile.TemporaryDirectory(dir=options.work.resolve()) as work:
        bench = Bench(options, Path(work))
        for name in options.only:
            for question in QUESTIONS[name](bench):
                answers.append(ask(bench, question))
                print(write(options, answers))


if __name__ == "__main__":
    main()
