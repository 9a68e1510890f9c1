"""What ``estimate`` prints: memory by role and by phase, work and time, and what to change where a run does not fit."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

_PLAIN_WIDTH = 160


def show(found: dict[str, Any]) -> None:
    """Print what was found, plainly where nobody sits at a terminal.

    Args:
        found: by :func:`lit_rlhf.estimating.findings.findings`.
    """
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_PLAIN_WIDTH)
    for part in _parts(found, is_plain=not console.is_terminal):
        console.print(part)


def _parts(found: dict[str, Any], *, is_plain: bool) -> list[RenderableType]:
    style = box.ASCII2 if is_plain else box.ROUNDED
    parts: list[RenderableType] = [_title(found), _roles(found, style), _phases(found, style), _devices(found, style)]
    parts += [part for device in found["devices"] for part in _advice(device)]
    return [*parts, *(Text(f"note: {note}", "dim") for note in found["notes"])]


def _title(found: dict[str, Any]) -> Text:
    model, texts = found["model"], found["texts"]
    active = model["active_parameters"]
    sparse = f", {_count(active)} of them active" if active < 0.8 * model["parameters"] else ""
    pictures = f", {_count(model['picture_parameters'])} for pictures" if model["picture_parameters"] else ""
    return Text(
        f"{found['algorithm']} on {model['type']}: {_count(model['parameters'])} parameters{sparse}{pictures}, "
        f"{_count(model['trained_parameters'])} trained; texts of {texts['prompt']} + {texts['response']} tokens, "
        f"{texts['largest_pass']} at most in a pass\nEstimated, not measured.",
        "bold",
    )


def _roles(found: dict[str, Any], style: box.Box) -> Table:
    table = Table("there all the time", box=style)
    table.add_column("memory", justify="right")
    for role, size in found["memory"]["roles"].items():
        table.add_row(role, gigabytes(size))
    table.add_section()
    table.add_row("together", gigabytes(found["memory"]["static"]), style="bold")
    return table


def _phases(found: dict[str, Any], style: box.Box) -> Table:
    table = Table("phase", "beside that", box=style)
    for name in ("peak", "FLOPs"):
        table.add_column(name, justify="right")
    for phase, parts in found["memory"]["phases"].items():
        said = ", ".join(f"{name} {gigabytes(size)}" for name, size in parts.items() if name != "peak" and size)
        is_worst = phase == found["memory"]["worst_phase"]
        flops = found["flops"]["phases"].get(phase)
        told = "" if flops is None else f"{flops:.3g}"
        table.add_row(phase, said, gigabytes(parts["peak"]), told, style="bold" if is_worst else "")
    return table


def _devices(found: dict[str, Any], style: box.Box) -> Table:
    phases = list(found["devices"][0]["seconds"])
    table = Table("device", box=style)
    for name in ("memory", "fits", *phases, "a step", "the run"):
        table.add_column(name, justify="right")
    for device in found["devices"]:
        limit = device["memory"]
        fits = "?" if limit is None else "yes" if device["fits"] else "no"
        whole = "?" if device["run_seconds"] is None else duration(device["run_seconds"])
        times = [duration(device["seconds"][phase]) for phase in phases]
        told = "" if limit is None else gigabytes(limit)
        table.add_row(device["name"], told, fits, *times, duration(device["step_seconds"]), whole)
    return table


def _advice(device: dict[str, Any]) -> list[RenderableType]:
    """What to change, each change on top of those above it."""
    if device["fits"]:
        return []
    lines = [Text(f"to fit {device['name']}, append in this order:", "bold yellow")]
    for change in device["advice"]:
        saved, left = gigabytes(change["saving"]), gigabytes(change["peak"])
        lines += [Text(f"  {change['flags']}"), Text(f"      saves {saved}, leaves {left}; {change['why']}", "dim")]
    if not device["advice"] or device["advice"][-1]["peak"] > device["memory"]:
        lines.append(
            Text("  it does not fit even so: take a larger device, more of them, or a smaller model", "yellow")
        )
    return list(lines)


def gigabytes(size: float) -> str:
    """A size in words, with units of 10^9, 10^6 or 10^3 bytes.

    Example:
        >>> gigabytes(5_700_000_000), gigabytes(14_500_000)
        ('5.70 GB', '14.5 MB')
    """
    if size >= 1e9:
        return f"{size / 1e9:.2f} GB"
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"


def duration(seconds: float) -> str:
    """A time in words.

    Example:
        >>> duration(0.5), duration(90), duration(7200), duration(400_000)
        ('0.50 s', '1.5 min', '2.0 h', '4.6 d')
    """
    for limit, unit, size in ((60, "s", 1), (3600, "min", 60), (172_800, "h", 3600)):
        if seconds < limit:
            return f"{seconds / size:.2f} s" if unit == "s" else f"{seconds / size:.1f} {unit}"
    return f"{seconds / 86_400:.1f} d"


def _count(number: float) -> str:
    return f"{number / 1e9:.2f} B" if number >= 1e9 else f"{number / 1e6:.2f} M"
