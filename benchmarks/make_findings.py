"""Makes docs/findings.md: one screen of answers to the paper's claims and open questions, what is not settled, and each experiment in detail.

    python benchmarks/make_findings.py

Answers are made from JSON, by the experiments (benchmarks/experiments) and benchmarks/answers.py; nothing in the page is typed by hand but the questions.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE / "experiments"), str(HERE)]

import answers  # noqa: E402
from results_common import table  # noqa: E402

Answer = str | Callable[[], str | None]
"""The name of an experiment, or what makes the line from the tables."""

SCREEN: tuple[tuple[str, tuple[tuple[str, Answer], ...]], ...] = (
    (
        "What the paper claims",
        (
            ("More than 95 % of the accuracy at 50 % pruning?", "headline"),
            ("Better than OMP, DeepLIFT and LRP?", answers.rivals),
            ("Better than its ranking variant, C-BP?", answers.ranking_variant),
            ("Do rankings go stale, as it says of C-BP?", "stale"),
            ("Competitive on segmentation?", answers.masks),
            ("Is voting by class better than pooled inference?", "voting"),
        ),
    ),
    (
        "Its open questions and limits",
        (
            ("Can blocks replace units in wide layers?", "blocks"),
            ("How does cost grow with width?", answers.width),
            ("What score captures boxes and masks?", "scores"),
            ("Does detection work?", answers.boxes),
            ("Is the vote too conservative?", "conservatism"),
            ("Is a class sacrificed; do confused classes share units?", "classes"),
        ),
    ),
    (
        "Its next checks",
        (
            ("α: does a larger one avoid an early cliff?", "alpha"),
            ("Does the feed-forward order hold for text?", "text_order"),
            ("How many samples a class are enough?", "sample_size"),
        ),
    ),
    (
        "What goes beyond it",
        (
            ("Which order of critical units is best?", answers.buffer_order),
            ("What can be given back without fine-tuning?", answers.given_back),
            ("Is testing jointly better than any ranking?", answers.joint),
        ),
    ),
)

WRITTEN = {
    "resnet18": "ResNet-18", "resnet20": "ResNet-20", "resnet50": "ResNet-50", "mobilenet_v2": "MobileNetV2", "vit": "ViT", "lstm": "LSTM",
    "minilm": "MiniLM", "camvid": "CamVid", "bccd": "BCCD",
}  # fmt: skip
NAMES = re.compile(rf"\b({'|'.join(WRITTEN)})\b")

IN_DETAIL = {
    "headline": "C-SWAP against magnitude (OMP) and random",
    "voting": "Voting by class against pooled inference",
    "sample_size": "Samples a class",
    "alpha": "Significance level",
    "stale": "Rankings that go stale",
    "conservatism": "A vote that is too conservative",
    "classes": "Classes",
    "text_order": "Feed-forward order on text",
    "blocks": "Blocks of units",
    "scores": "Hard and soft scores",
}


def findings() -> str:
    """The text of docs/findings.md."""
    from _experiment import modules

    known: dict[str, tuple[Any, dict[str, Any]]] = {name: (module, data) for name, module, data in modules()}
    lines = [
        "---", "hide: [toc]", "---", "", "# Findings", "",
        "What the experiments say to the paper, a line each; what they looked at, with seeds, commands and plots, is in `benchmarks/RESULTS.md`. Accuracy is of "
        "held-out images, on CIFAR-10 where no other data are named; *as cut* is with nothing given back, *refitted* with the least squares of `--recover lstsq`, "
        "and an area is that under the curve to 80 % removed (SAUCE), 1 where nothing is lost.", "",
    ]  # fmt: skip
    open_ones: list[str] = []
    rows = []
    for title, questions in SCREEN:
        rows.append([f"**{title}**", ""])
        for question, by in questions:
            said = by() if callable(by) else known[by][0].answer(known[by][1]) if by in known else None
            open_ones += [] if said else [question]
            shown = NAMES.sub(lambda m: WRITTEN[m[0]], said or "Not measured yet.").replace("|", "\\|")
            rows.append([f"[{question}](#{by})" if isinstance(by, str) else question, shown])
    lines += table(["Question", "Answer"], rows)
    gaps = [*(f"{q} Not measured yet." for q in open_ones), *_gaps(known)]
    lines += ["## Not settled", "", *(f"* {gap}" for gap in gaps), ""]
    lines += ["## In detail", ""]
    for name, title in IN_DETAIL.items():
        if name in known:
            module, data = known[name]
            lines += [
                f'<a id="{name}"></a>**{title}.** {module.finding(data)} (`benchmarks/experiments/{name}.py`)',
                "",
            ]
    file = HERE / "results" / "buffer_orders.json"
    if file.exists():
        from results_orders import order_finding

        lines += [
            f"**Order of critical units.** {order_finding(json.loads(file.read_text()))} (`benchmarks/buffer_orders.py`)",
            "",
        ]
    file = HERE / "results" / "recoveries_all_resnet18.json"
    if file.exists():
        from results_recoveries import finding

        lines += [f"**Recovery.** {finding(json.loads(file.read_text()))} (`benchmarks/methods.py`)", ""]
    return "\n".join(lines)


def _gaps(known: dict[str, tuple[Any, dict[str, Any]]]) -> list[str]:
    """What was asked for and is not in the JSON, and what figures of this size cannot say."""
    missing = []
    for name, (module, data) in known.items():
        asked = set(getattr(module, "PER_CLASS", ())) if isinstance(getattr(module, "PER_CLASS", None), dict) else set()
        found = {n.split(",")[0] for n in data.get("networks", {})}
        missing += (
            [f"{IN_DETAIL[name]}: not run on {', '.join(sorted(asked - found))}."] if asked and asked - found else []
        )
    short = answers.not_in_tables()
    return [
        *missing,
        *([short] if short else []),
        "Every figure is of small networks on small images (digits 8×8, CIFAR-10 32×32, CamVid 240×180, BCCD 256×256) or short sentences, with fewer samples a class than "
        "the paper's 128 where an experiment says so; most are of one draw of calibration samples.",
        "The paper's own numbers could not be compared with: its code, weights and SAUCE formula are not public.",
    ]  # fmt: skip


def write_findings() -> None:
    """Write docs/findings.md."""
    (HERE.parent / "docs" / "findings.md").write_text(findings(), encoding="utf-8")


if __name__ == "__main__":
    write_findings()
