"""Makes docs/reliability.md from the JSON under results/: no figure in it is typed by hand."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

from results_common import origin, table

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "docs" / "reliability.md"

_HEAD = """# Reliability

What `cswap` promises, and what was done to break it. Made by `python benchmarks/reliability_page.py` from the JSON under
`benchmarks/results/`.

| promise | where it is tried |
| --- | --- |
| Wrong input ends with status 2 (a run's own failure with 1) and one line that says what was expected and what came: no traceback, nothing half written, nothing overwritten without `--force`. | `tests/end_to_end/bad_input` |
| A run that is killed, interrupted, out of disk or out of memory goes on with `--resume` to the path, the weights and the effects of the run that nothing struck, byte for byte; with several processes too, as many as before. | `benchmarks/faults.py`, `tests/end_to_end/test_resume.py` |
| A torn last line of the journal is decided again; a torn line in the middle, or a flipped bit anywhere in it, is refused. Lines, statistics and states carry a CRC-32; the path, weights and effects of an artifact a SHA-256. | `benchmarks/fuzz.py`, `tests/test_corpus.py` |
| What an artifact says is never trusted: no pickle, no `eval`, no shell; no path out of its folder; code that it names runs only with `--trust`. The report escapes what it prints. | `tests/test_security.py`, `tests/end_to_end/test_report.py` |
| Effects are those of a plain float64 twin, whatever the batch, the order of samples, the memory given or the number of threads; where σ is 0 or 1, where outputs are constant, with a sample more or less in a class, with 1,000 classes. | `tests/test_numbers.py` |
| Memory follows `--memory`, a budget for activations, and does not grow with time; the journal grows by a fixed size a decision. | `benchmarks/soak.py` |

Not promised: numbers equal to the last bit on another machine, another number of threads or another version of PyTorch;
decisions whose p-value is within 1e-4 of α are marked (`knife_edge`). A CRC finds accidents, not forgery: whoever can write
an artifact can write another one.
"""  # fmt: skip


def _read(name: str) -> dict[str, Any] | None:
    file = HERE / "results" / f"{name}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def _later(kind: dict[str, Any], commit: str) -> str:
    """The commits of a kind's trials, where they are not the result's own."""
    others = [c for c in kind.get("commits", []) if c != commit]
    return f" (commit {', '.join(f'`{c[:12]}`' for c in others)})" if others else ""


def _faults(data: dict[str, Any]) -> list[str]:
    whole = data["seconds_of_the_whole_run_by_processes"]
    took = ", ".join(f"{s} s by {n} process{'es' if n != '1' else ''}" for n, s in whole.items())
    rows = [
        [
            k["says"] + _later(k, data["commit"]),
            k["struck"],
            k["with_a_journal"],
            k["identical"],
            k["refused"],
            k["differs"],
            k["tracebacks"],
        ]
        for k in data["kinds"].values()
    ]
    return [
        "## Faults at random moments", "", origin(data), "",
        f"A job that takes {took} was struck at a moment drawn from all of its time, and the same command given again. "
        "`identical`: path and weights byte for byte, effects number for number, and what the manifest says was kept.", "",
        *table(["fault", "struck", "with a journal open", "resumed identical", "refused wrongly", "different", "tracebacks"], rows),
    ]  # fmt: skip


def _bad_input() -> list[str]:
    """How many cases the tables of the test hold: read from its source, so that nothing is imported."""
    tables = {}
    for file in sorted((HERE.parent / "tests" / "end_to_end" / "bad_input").glob("test_*.py")):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if (
                isinstance(node, ast.AnnAssign)
                and isinstance(node.value, ast.Dict)
                and isinstance(node.target, ast.Name)
            ):
                tables[node.target.id.lower().replace("_", " ")] = len(node.value.keys)
    return [
        "## Bad input", "", "`python -m pytest tests/end_to_end/bad_input`: it passes or fails, and has no figures but the number of its cases.", "",
        *table(["table", "cases"], [*tables.items(), ["all", sum(tables.values())]]),
        "Besides them: flipped bits in every file of an artifact, disks that are full, folders that cannot be written, options that contradict "
        "each other, commands on what is no artifact.", "",
    ]  # fmt: skip


def _fuzz(data: dict[str, Any]) -> list[str]:
    rows = []
    for command, found in data["by_command"].items():
        wrong = sum(n for o, n in found.items() if o not in ("fine", "refused", "skipped"))
        shown = {"load": "cswap.load", "resume": "prune --resume", "further": "prune --resume, further"}.get(
            command, command
        )
        rows.append([f"`{shown}`", found.get("refused", 0), found.get("fine", 0), wrong])
    kept = json.loads((HERE.parent / "tests" / "corpus" / "fuzz.json").read_text(encoding="utf-8"))
    return [
        "## Spoiled files", "", origin(data), "",
        f"{data['minutes']:g} minutes, {data['spoiled']:,} files of artifacts and journals spoiled by hypothesis: "
        f"{data['kinds_of_answers']} kinds of answers. {len(kept)} recipes, among them those that found faults since mended, are "
        "kept in `tests/corpus/fuzz.json` and replayed by every test run.", "",
        *table(["reads it", "refused in one line", "of no consequence", "anything else"], rows),
    ]  # fmt: skip


def _soak(data: dict[str, Any]) -> list[str]:
    return [
        "## A long run on many units", "", origin(data), "",
        *table(
            ["figure", "value"],
            [
                ["units of the network", f"{data['units']:,}"],
                ["minutes, decisions", f"{data['minutes']:g}, {data['decisions']:,}"],
                ["resident memory by quarter, MiB", ", ".join(f"{m:,.0f}" for m in data["resident_mean_mib_by_quarter"])],
                ["its slope after the first quarter, MiB a minute", data["slope_mib_per_minute"]],
                ["`--memory`, MiB", f"{data['memory_given_mib']:g}"],
                ["peak above the start of the analysis, MiB", data["peak_above_start_mib"]],
                ["as a part of `--memory`", f"{100 * data['peak_of_memory_given']:.0f} %"],
                ["bytes a decision: path, statistics", f"{data['journal_bytes_per_decision']:g}, {data['records_bytes_per_decision']:g}"],
                ["longest time between decisions, s", data["longest_seconds_between_decisions"]],
            ],
        ),
    ]  # fmt: skip


def _ends(data: dict[str, Any]) -> list[str]:
    rows = []
    for end, found in data["ends"].items():
        told = ", ".join(f"{n} {v}" for n, v in found.get("versions", {}).items())
        commit = found.get("commit", data["commit"])[:12]
        rows.append([end, f"`{commit}`", told or found.get("why", ""), found.get("summary", "not installed")])
    kept = ", ".join(data["kept_as_installed"]) or "nothing"
    return [
        "## Dependencies at both ends of their bounds", "", origin(data), "",
        f"Tests: {', '.join(f'`{t}`' for t in data['tests'])}. Left as installed: {kept}.", "",
        *table(["end", "commit", "versions", "tests"], rows),
    ]  # fmt: skip


def _numbers() -> list[str]:
    return [
        "## Numbers", "",
        "`python -m pytest tests/test_numbers.py`: networks drawn by hypothesis (depth, widths, residual, depthwise, grouped, "
        "strides, linear, samples, classes) cut by the engine and by the twin in `tests/reference/`; it passes or fails, and has no "
        "figures.", "",
    ]  # fmt: skip


def page() -> str:
    """The page's text."""
    parts = {"faults": _faults, "fuzz": _fuzz, "soak": _soak, "dependency_bounds": _ends}
    lines = [_HEAD, *_bad_input()]
    missing = []
    for name, made in parts.items():
        data = _read(name)
        if data is None:
            missing.append(f"`{name}`")
        else:
            lines += made(data)
        if name == "fuzz":
            lines += _numbers()
    if missing:
        lines += [f"Not measured yet: {', '.join(missing)}.", ""]
    return "\n".join(lines)


def write_page() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    write_page()
