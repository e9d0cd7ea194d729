"""What every section of RESULTS.md has: where its figures came from, and tables."""

from __future__ import annotations

from typing import Any, NamedTuple

RULE = "taken on evidence"
"""What decides today whether a recovery is taken: kept by results, so that older ones can say that theirs was another."""

WAYS = {"none": "plain", "bn": "BN again", "lstsq": "refitted"}


def origin(data: dict[str, Any]) -> str:
    """The command and where it ran."""
    m, v = data["machine"], data["versions"]
    where = (
        f"`{data['command']}`: seed {data['seed']}; {m['cores']} cores ({m['arch']}){', ' + m['gpu'] if 'gpu' in m else ''}, torch {v['torch']}, commit "
        f"`{_short(data['commit'])}`."
    )
    earlier = [r for r in data.get("measured_by", ()) if r["commit"] != data["commit"]]
    said = [
        f"`{_short(r['commit'])}`"
        + (
            f" ({r['machine'].get('gpu', str(r['machine']['cores']) + ' cores')}, torch {r['versions']['torch']})"
            if "machine" in r
            else ""
        )
        for r in earlier
    ]
    return where + (f" Parts were measured at {', '.join(said)}, and the run resumed." if said else "")


def _short(commit: str) -> str:
    return f"{commit[:12]}{'+dirty' if commit.endswith('dirty') else ''}"


def table(head: list[str], rows: list[list[Any]]) -> list[str]:
    """A table in Markdown, and an empty line."""
    return [f"| {' | '.join(str(c) for c in row)} |" for row in (head, ["---"] * len(head), *rows)] + [""]


def standard_error(accuracy: float, samples: int) -> float:
    """Of an accuracy, in points."""
    return float(100 * (accuracy * (1 - accuracy) / samples) ** 0.5)


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


def label(name: str, data: dict[str, Any]) -> str:
    """A method as it was measured: before `scopes` was written, `lamp:global` divided each group's scores by their mean too."""
    if name == "cswap" and data.get("granularity", "unit") != "unit":
        return f"cswap ({data['granularity']})"
    return f"{name} (by group means)" if name == "lamp:global" and "scopes" not in data else name


def theirs(data: dict[str, Any]) -> str:
    """What the `tp_` methods are, where there are any."""
    if not any(n.startswith("tp_") for n in data["methods"]):
        return ""
    return " `tp_…`: Torch-Pruning's own importances, with its defaults, on the same groups and samples (`tp_importances.py`)."


def bold_best(value: float, best: float) -> str:
    text = f"{100 * value:.2f}"
    return f"**{text}**" if value >= best else text


class Said(NamedTuple):
    """One row of docs/findings.md: the answer, the figures that it rests on, and where they are of."""

    answer: str
    figures: str
    where: str


def yes_no(found: dict[str, int], runs: str = "") -> str:
    """Yes, no or cannot tell by what each network says: 1, −1, or 0 where it cannot. runs: "one run" where there is no spread over seeds."""
    on = {
        word: [n for n, sign in found.items() if sign == s] for word, s in (("yes", 1), ("no", -1), ("cannot tell", 0))
    }
    said = [word for word, names in on.items() if names]
    text = (
        f"**{said[0].capitalize()}**"
        if len(said) == 1
        else "; ".join(f"**{word}** on {', '.join(on[word])}" for word in said)
    )
    return f"{text[:2]}{text[2].upper()}{text[3:]}" + (f" ({runs})" if runs else "")


def short(name: str) -> str:
    """A network and its samples a class as findings name them: "resnet18 at 8"."""
    return name.replace(", ", " at ", 1).replace(" samples a class", "")


def sign(value: float, half: float = 0.0) -> int:
    """1 or −1 where the interval excludes 0."""
    return int(value > half) - int(value < -half)
