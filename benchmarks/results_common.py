"""What every section of RESULTS.md has: where its figures came from, and tables."""

from __future__ import annotations

from typing import Any


def origin(data: dict[str, Any]) -> str:
    """The command and where it ran."""
    m, v = data["machine"], data["versions"]
    return (
        f"`{data['command']}`: seed {data['seed']}; {m['cores']} cores ({m['arch']}){', ' + m['gpu'] if 'gpu' in m else ''}, torch {v['torch']}, commit "
        f"`{data['commit'][:12]}{'+dirty' if data['commit'].endswith('dirty') else ''}`."
    )


def table(head: list[str], rows: list[list[Any]]) -> list[str]:
    """A table in Markdown, and an empty line."""
    return [f"| {' | '.join(str(c) for c in row)} |" for row in (head, ["---"] * len(head), *rows)] + [""]


def hours(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 600
        else f"{seconds / 60:.0f} min"
        if seconds < 3 * 3600
        else f"{seconds / 3600:.1f} h"
    )


def point_at(points: list[dict[str, Any]], kind: str, asked: float) -> dict[str, Any] | None:
    return next((p for p in points if p["asked"].get(kind) == asked), None)


def bold_best(value: float, best: float) -> str:
    text = f"{100 * value:.2f}"
    return f"**{text}**" if value >= best else text
