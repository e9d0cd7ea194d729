"""Makes docs/findings.md: one screen of answers to the paper's claims, open questions and next checks, and what is not settled.

    python benchmarks/make_findings.py

Each row is made from JSON, by an experiment (benchmarks/experiments) or by benchmarks/answers.py, by the same rule: yes or no where an interval over
draws excludes the other, or where it is one run, which is said; "cannot tell" otherwise.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE / "experiments"), str(HERE)]

import answers  # noqa: E402
from results_common import Said, table  # noqa: E402

Answer = str | Callable[[], Said | None]
"""An experiment (NAME, or NAME:PART), or what makes the row from the tables."""

SCREEN: tuple[tuple[str, tuple[tuple[str, Answer], ...]], ...] = (
    (
        "Claims",
        (
            ("95 % of the accuracy kept with half removed?", "headline"),
            ("… with α = 0.001?", "alpha:small"),
            ("… with pooled votes?", "voting:pooled"),
            ("Better than magnitude (OMP)?", answers.magnitude),
            ("Better than random?", answers.at_random),
            ("Better than DeepLIFT and LRP?", answers.relevance),
            ("Better than C-BP, its ranking variant?", answers.ranking_variant),
            ("Do rankings go stale?", "stale"),
            ("First on segmentation, as cut?", answers.masks),
            ("Does voting by class keep more than pooled votes?", "voting"),
        ),
    ),
    (
        "Open questions",
        (
            ("Can blocks replace units?", "blocks"),
            ("How does the cost grow with width?", answers.width),
            ("Do scores for boxes and masks foretell losses?", "scores"),
            ("Can a detector lose half for 5 %?", answers.boxes),
            ("Does the vote keep single units that cost nothing?", "conservatism"),
            ("… and units that cost nothing together?", answers.together),
            ("Is a class sacrificed?", answers.worst_class),
            ("Do confused classes need the same units?", "classes"),
        ),
    ),
    (
        "Next checks",
        (
            ("Does a larger α keep more?", "alpha"),
            ("Does the order from output to input hold for text?", "text_order"),
            ("From how many samples do verdicts settle?", "sample_size"),
            ("Do more samples keep more?", answers.more_samples),
        ),
    ),
    (
        "Beyond the paper",
        (
            ("Which order of critical units keeps most?", answers.buffer_order),
            ("What does refitting give back?", answers.given_back),
            ("Is testing jointly better than any ranking?", answers.joint),
            ("Do sets tested jointly keep their margin on new samples?", "joint_margins"),
        ),
    ),
)
WRITTEN = {
    "resnet18": "ResNet-18", "resnet20": "ResNet-20", "resnet50": "ResNet-50", "mobilenet_v2": "MobileNetV2", "vit": "ViT", "lstm": "LSTM",
    "minilm": "MiniLM", "camvid": "CamVid", "bccd": "BCCD",
}  # fmt: skip
NAMES = re.compile(rf"\b({'|'.join(WRITTEN)})\b")
TITLES = {
    "headline": "C-SWAP, magnitude and random over five draws",
    "voting": "Voting",
    "alpha": "α",
    "sample_size": "Sample sizes",
    "text_order": "The order on text",
}


def findings() -> str:
    """The text of docs/findings.md."""
    from _experiment import modules

    known: dict[str, tuple[Any, dict[str, Any]]] = {name: (module, data) for name, module, data in modules()}

    def said(by: Answer) -> Said | None:
        if callable(by):
            return by()
        name, _, part = by.partition(":")
        if name not in known:
            return None
        module, data = known[name]
        row: Said = getattr(module, f"answer_{part}" if part else "answer")(data)
        return row

    rows, not_yet = [], []
    for title, questions in SCREEN:
        rows.append([f"**{title}**", "", "", ""])
        for question, by in questions:
            row = said(by)
            not_yet += [] if row else [question]
            rows.append([question, *(_written(cell) for cell in row or ("Not measured yet", "", ""))])
    lines = [
        "---", "hide: [toc]", "---", "", "# Findings", "",
        "What the experiments say to the paper. Accuracy is of held-out images, CIFAR-10 where no other data are named. *At 16*: 16 calibration samples a class. *As cut*: nothing is given back; "
        "*refitted*: `--recover lstsq`. Area: under the curve as cut, to 80 % removed, 1 where nothing is lost (SAUCE). Commands, seeds, tables and plots: `benchmarks/RESULTS.md`.", "",
        *table(["Question", "Answer", "Figures", "Where"], rows),
        "## Not settled", "", *(f"* {q} Not measured yet." for q in not_yet), *(f"* {_written(gap)}" for gap in _gaps(known)), "",
    ]  # fmt: skip
    return "\n".join(lines)


def _written(text: str) -> str:
    return NAMES.sub(lambda m: WRITTEN[m[0]], text).replace("|", "\\|")


def _gaps(known: dict[str, tuple[Any, dict[str, Any]]]) -> list[str]:
    """What was asked for and is not in the JSON, and what figures of this size cannot say."""
    missing = []
    for name, (module, data) in known.items():
        sizes = getattr(module, "PER_CLASS", None)
        found = {n.split(",")[0] for n in data.get("networks", {})}
        if isinstance(sizes, dict) and (lacking := sorted(set(sizes) - found)):
            named = [n.replace("-pooled", " with pooled votes") for n in lacking]
            missing.append(f"{TITLES[name]}: not run on {', '.join(named)}.")
    small = [
        f"{TITLES[name].lower()} on {n} ({part['units']} units)" for name in ("voting", "sample_size") if name in known
        for n, d in known[name][1]["networks"].items() if "units" in (part := d.get("drawn", d)) and n in ("resnet50", "mobilenet_v2")
    ]  # fmt: skip
    return [
        *missing,
        *answers.not_in_tables(),
        *([f"Scaled down to a share of the units: {', '.join(small)}."] if small else []),
        "Whether the vote is too conservative where classes are highly correlated, as those of fine-grained data are; instance segmentation.",
        "Every figure is of small networks on small images (digits 8×8, CIFAR-10 32×32, CamVid 240×180, BCCD 256×256) or short sentences; what says \"one run\" is one draw of calibration samples.",
        "The paper's own numbers could not be compared with: its code, weights and SAUCE formula are not public.",
    ]  # fmt: skip


def write_findings() -> None:
    """Write docs/findings.md."""
    (HERE.parent / "docs" / "findings.md").write_text(findings(), encoding="utf-8")


if __name__ == "__main__":
    write_findings()
