"""What the report of a run tells in words and tables; one without data is left out."""

from __future__ import annotations

import re
from pathlib import Path

from lit_rlhf.reports.axes import written
from lit_rlhf.reports.drawings import numbers
from lit_rlhf.reports.left import Run
from lit_rlhf.reports.markup import Html, el, join, prose, table

_SECRET = re.compile(r"(^|[_.-])(api_?key|password|passwd|secret|credentials?|token)$", re.IGNORECASE)
"""Last words of keys whose values are nobody's business."""

HEADLINES = (
    *("score", "sampled_score", "scores/accuracy", "rewards/accuracy", "token_accuracy", "sampled_win_rate"),
    *("kl", "finished", "length", "scores/margin", "rewards/margin", "loss"),
)
"""Held-out metrics that come first; the first that moved is named in the outcome."""

_NUM_TILES = 4

_FILES = {
    "README.md": "what lies here and how to load it",
    "config.yaml": "every setting",
    "metrics.csv": "every number on the way",
    "plots": "the curves as pictures",
    "samples.jsonl": "responses to the same prompts at every evaluation",
    "heldout.jsonl": "rewards or scores of single held-out rows, before and after",
    "run.json": "how the run ended, what warned, versions",
    "checkpoints": "where `--ckpt_path` goes on from",
    "critic": "the critic that was trained beside the policy",
    "adapter_model.safetensors": "what was learnt",
    "model.safetensors": "what was learnt",
    "adapter_config.json": "what the adapter belongs to",
    "tokenizer.json": "the tokenizer that it was trained with",
    "reward_model.json": "objectives, and how scores spread",
    "test_table.csv": "a test by subset",
}


def outcome(run: Run) -> str:
    """How the run ended and where its headline went, in one sentence."""
    state = run.facts.get("state")
    end = {
        None: "How it ended is not known",
        "running": "It has not ended, or was killed",
        "finished": "Finished",
    }.get(state, f"Ended early ({state})")
    done = f" after {run.facts['done']}" if run.facts.get("done") else ""
    took = f" in {clock(run.facts['seconds'])}" if run.facts.get("seconds") else ""
    return f"{end}{done}{took}{_headline(run)}."


def key_numbers(run: Run) -> Html | None:
    """First and last value of what was held out, the most telling on top."""
    names = {metric.removeprefix("val/") for row in run.metrics for metric in row if metric.startswith("val/")}
    in_order = (*(name for name in HEADLINES if name in names), *sorted(names - {*HEADLINES}))
    ends = {name: found for name in in_order if (found := run.ends(f"val/{name}")) and found[0] != found[1]}
    if not ends:
        return None
    tiled = [item for item in ends.items() if item[0] in HEADLINES] or [*ends.items()]
    tiles = [
        el(
            "div",
            el("span", name, class_="what"),
            el("b", written(last)),
            el("span", f"from {written(first)}"),
            class_="tile",
        )
        for name, (first, last) in tiled[:_NUM_TILES]
    ]
    rows: list[list[object]] = [
        [name, written(first), written(last), f"{last - first:+.3g}"] for name, (first, last) in ends.items()
    ]
    full = table(["held-out", "first", "last", "change"], rows, "Held-out metrics, first and last")
    more = el("details", el("summary", f"All {len(rows)} held-out metrics that moved"), full)
    return join(el("div", *tiles, class_="tiles"), more)


def warnings(run: Run) -> Html | None:
    """What health bands said."""
    said = run.facts.get("warnings")
    if said is None:
        return None
    if not said:
        return el("p", "No health band was left.", class_="good")
    return el("ul", *(el("li", warning) for warning in said), class_="warnings")


def data(run: Run) -> Html | None:
    """What became of the rows on their way into batches."""
    metrics = {metric for row in run.metrics for metric in row}
    rows: list[list[object]] = []
    for name in sorted(metric for metric in metrics if re.match(r"\w+/data/(dropped|truncated)", metric)):
        split, _, kind, *reason = name.split("/", 3)
        values = numbers(run.metrics, name)
        # A reason is logged where it occurs: where it is not, its share is 0.
        windows = numbers(run.metrics, f"{split}/data/{kind}")
        share = sum(values) / max(len(windows), len(values), 1)
        if share or not reason:
            rows.append([split, kind, "/".join(reason) or "all", f"{share:.2%}"])
    if not rows:
        return None
    if all(share == "0.00%" for *_, share in rows):
        return el("p", "No row was left out or shortened.", class_="good")
    return table(["split", "rows", "why", "share"], rows, "Rows left out or shortened")


def reproduction(run: Run) -> Html | None:
    """What to type to have the run again."""
    versions = run.facts.get("versions") or {}
    seed = run.config.get("seed_everything")
    told: list[list[object]] = [["seed", str(seed)]] if seed is not None else []
    told += [["device", str(run.facts["device"])]] if run.facts.get("device") else []
    told += [[name, str(version)] for name, version in versions.items()]
    lines = [f"python -m lit_rlhf fit --config {run.folder / 'config.yaml'} --trainer.default_root_dir runs/again"]
    typed = (
        [el("p", "It was started as"), el("pre", run.facts["command"], tabindex="0")]
        if run.facts.get("command")
        else []
    )
    again = [el("p", "Its folder holds all settings:"), el("pre", *lines, tabindex="0")] if run.config else []
    facts = table(["", "value"], told, "Seed, device and versions") if told else None
    return join(*typed, *again, facts) if typed or again or facts else None


def settings(run: Run) -> Html | None:
    """Every setting that is not empty."""
    rows: list[list[object]] = [[key, value] for key, value in shown(run).items() if value not in ("None", "{}", "[]")]
    if not rows:
        return None
    full = table(["key", "value"], rows, "Settings")
    return el("details", el("summary", f"{len(rows)} settings that are not empty"), full, class_="settings")


def shown(run: Run) -> dict[str, str]:
    """Settings as they may be shown: what is secret by its key is not."""
    return {key: "(hidden)" if _is_secret(key, value) else str(value) for key, value in run.settings.items()}


def files(run: Run) -> Html | None:
    """What lies in the folder."""
    rows: list[list[object]] = []
    for path in sorted(run.folder.iterdir()):
        inside = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
        size = sum(file.stat().st_size for file in inside)
        name = path.name + ("/" if path.is_dir() else "")
        rows.append([el("a", name, href=_link(path)), _size(size), prose(_FILES.get(path.name, ""))])
    return table(["file", "size", "what it is"], rows, "Files of the run")


def clock(seconds: float) -> str:
    """Hours, minutes and seconds.

    Example:
        >>> clock(75), clock(3675)
        ('1:15', '1:01:15')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _headline(run: Run) -> str:
    for name in HEADLINES:
        ends = run.ends(f"val/{name}")
        if ends and ends[0] != ends[1]:
            return f": held-out {name} went from {written(ends[0])} to {written(ends[1])}"
    return ""


def _is_secret(key: str, value: object) -> bool:
    return isinstance(value, str) and bool(_SECRET.search(key))


def _link(path: Path) -> str:
    from urllib.parse import quote

    return "./" + quote(path.name)


def _size(num_bytes: int) -> str:
    size, units = float(num_bytes), iter(("B", "kB", "MB", "GB", "TB"))
    unit = next(units)
    while size >= 1000 and unit != "TB":
        size, unit = size / 1000, next(units)
    return f"{size:.3g} {unit}"
