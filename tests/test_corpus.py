"""Spoiled artifacts and journals that the fuzzer found worth keeping are refused in one line, or are of no consequence."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
RECIPES = json.loads((ROOT / "tests" / "corpus" / "fuzz.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def fuzz(tmp_path_factory):
    """The fuzzer's module, and its network with an artifact and a journal."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import fuzz
    finally:
        sys.path.pop(0)
    return fuzz, fuzz.Ground(tmp_path_factory.mktemp("fuzz"))


def test_every_kept_recipe_is_refused_in_one_line_or_harmless(fuzz):
    module, ground = fuzz
    answers = Counter()
    for recipe in RECIPES:
        found, said = module.answer(ground, recipe)
        assert found in ("fine", "refused", "skipped"), (recipe, found, said)
        answers[found] += 1
    assert answers["refused"] > len(RECIPES) / 3
    assert answers["fine"]
    assert answers["skipped"] < len(RECIPES) / 10


@pytest.mark.parametrize(
    "said", ["a\nb\n", "Traceback (most recent call last)\n", "cswap: the run failed (ValueError: a); the log is x\n"]
)
def test_the_check_itself_can_fail(fuzz, said):
    module, ground = fuzz
    assert module.judged(ground, ground.fresh("art"), "eval", 2, said)[0] not in ("fine", "refused")


@pytest.mark.parametrize("file", ["path.jsonl", "effects.part", "state.0.safetensors", "state.1.safetensors"])
def test_no_flipped_bit_of_a_journal_makes_another_path(fuzz, file):
    module, ground = fuzz
    outcomes = Counter()
    for i in range(12):
        recipe = {"action": "resume", "file": file, "op": "flip", "at": (i + 0.37) / 12, "bit": i % 8}
        found, said = module.answer(ground, recipe)
        assert found in ("fine", "refused", "skipped"), (recipe, found, said)
        outcomes[found] += 1
    assert outcomes["refused"]


def test_a_torn_last_line_is_repaired_and_a_torn_middle_line_refused(fuzz):
    module, ground = fuzz
    for at, expected in ((0.999, "fine"), (0.5, "refused"), (0.0, "refused")):
        found, said = module.answer(
            ground, {"action": "resume", "file": "path.jsonl", "op": "line", "at": at, "what": "tear"}
        )
        assert found == expected, (at, said)
        assert at == 0.999 or "line " in said
