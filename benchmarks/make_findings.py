"""Makes docs/findings.md: each question of the paper's summary, what the experiments found, and what is not settled.

    python benchmarks/make_findings.py

Answers are made by the experiments from their JSON (benchmarks/experiments); nothing in the page is typed by hand but the questions.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE / "experiments"), str(HERE)]

QUESTIONS = (
    (
        "Does C-SWAP keep more than 95 % of the accuracy at 50 % pruning, and beat magnitude (OMP) and random?",
        "headline",
    ),
    ("Voting by class against general inference?", "voting"),
    ("How many samples a class are enough?", "sample_size"),
    ("What does α do; does a larger one avoid an early cliff?", "alpha"),
    ("Do rankings go stale, as the paper says of C-BP?", "stale"),
    ("Is the vote too conservative where classes are correlated?", "conservatism"),
    ("Is a class sacrificed; do confused classes need the same units?", "classes"),
    ("Does the feed-forward order hold for recurrent networks and text?", "text_order"),
    ("Can blocks of units replace per-unit analysis in wide layers?", "blocks"),
    ("What score captures masks, boxes and classes: decisions, or probabilities?", "scores"),
)


def findings() -> str:
    """The text of docs/findings.md."""
    from _experiment import modules

    known: dict[str, tuple[Any, dict[str, Any]]] = {name: (module, data) for name, module, data in modules()}
    lines = [
        "# Findings", "",
        "What the experiments say to the paper's claims and open questions. Tables, plots and the command of each are in "
        "`benchmarks/RESULTS.md`.", "",
    ]  # fmt: skip
    for question, name in QUESTIONS:
        answer = known[name][0].finding(known[name][1]) if name in known else "Not measured yet."
        where = f" (`benchmarks/experiments/{name}.py`)" if name in known else ""
        lines += [f"**{question}** {answer}{where}", ""]
    file = HERE / "results" / "buffer_orders.json"
    if file.exists():
        from results_orders import order_finding

        lines += [
            f"**In what order do critical units go best: largest signed ξ, or smallest |ξ| (`--buffer-order abs`)?** {order_finding(json.loads(file.read_text()))} "
            "(`benchmarks/buffer_orders.py`)",
            "",
        ]
    file = HERE / "results" / "recoveries_all_resnet18.json"
    if file.exists():
        from results_recoveries import finding

        lines += [
            f"**What can be given back without fine-tuning?** {finding(json.loads(file.read_text()))} (`benchmarks/methods.py`)",
            "",
        ]
    unsettled = [q for q, name in QUESTIONS if name not in known]
    lines += ["## Not settled", ""]
    lines += [f"* {q}" for q in unsettled]
    lines += [
        "* Every figure is of small networks on small images (digits 8×8, CIFAR-10 32×32, CamVid 240×180, BCCD 256×256) or short sentences, "
        "with fewer samples a class than the paper's 128 where an experiment says so.",
        "* The paper's own numbers could not be compared with: its code, weights and SAUCE formula are not public.",
    ]
    return "\n".join([*lines, ""])


def write_findings() -> None:
    """Write docs/findings.md."""
    (HERE.parent / "docs" / "findings.md").write_text(findings(), encoding="utf-8")


if __name__ == "__main__":
    write_findings()
