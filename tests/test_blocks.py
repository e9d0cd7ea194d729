"""`--granularity block:N`: N units are cut, tested and removed together, under the paper's own test."""

from __future__ import annotations

import numpy as np
import pytest

import cswap
from cswap.artifacts.journal import Journal, read_journal
from cswap.errors import InputError
from cswap.methods.options import Options
from cswap.methods.path import Silence, Start
from cswap.methods.progressive import cswap as walk
from cswap.methods.progressive import plain_engine
from tests.reference.twin import cut_scores


def _told(path):
    return [(d.step, d.phase, d.group, d.unit, d.verdict, d.xi, d.removed, d.reason) for d in path]


@pytest.fixture(scope="module")
def blocks(digits_case):
    """A path of blocks of three on the digits network."""
    model, calibration, structure = digits_case
    return cswap.prune_path(model, calibration, structure=structure, alpha=0.005, granularity="block:3")


def test_a_block_of_one_is_a_unit(digits_case):
    model, calibration, structure = digits_case
    one, unit = (
        cswap.prune_path(model, calibration, structure=structure, alpha=0.005, granularity=g)
        for g in ("block:1", "unit")
    )
    assert _told(one) == _told(unit)


def test_a_block_s_effect_is_that_of_cutting_it_together(digits_case, blocks):
    """The first blocks of the walk, up to the first removal, against a copy cut by hand in float64."""
    model, calibration, structure = digits_case
    walked = [d for d in blocks if d.phase == "walk"]
    assert len(walked) == structure.units
    group = structure[walked[0].group]
    inputs = calibration.inputs(0, len(calibration))
    base = cut_scores(model, [], inputs, calibration.targets).numpy()
    for start in range(0, group.size, 3):
        block = walked[start : start + 3]
        assert [d.unit for d in block] == list(range(start, min(start + 3, group.size)))
        assert len({(d.verdict, d.xi, d.removed, d.reason) for d in block}) == 1
        reads = [
            (s.module, [int(p) for d in block if d.unit in s.by_unit for p in s.by_unit[d.unit]])
            for s in group.consumers
        ]
        d = cut_scores(model, reads, inputs, calibration.targets).numpy() - base
        d[np.abs(d) <= 1e-6] = 0
        assert block[0].xi == pytest.approx(float((d / np.maximum(base, 1e-3)).mean()), rel=1e-3, abs=1e-7)
        if block[0].removed:
            break
    assert {d.removed for d in walked} == {True, False}


def test_a_block_goes_as_one_and_a_group_keeps_a_unit(digits_case, blocks):
    _, _, structure = digits_case
    for group in structure:
        walked = [d for d in blocks if d.phase == "walk" and d.group == group.name]
        gone = [d.removed for d in walked]
        assert all(len(set(gone[i : i + 3])) == 1 for i in range(0, group.size, 3))
    assert sum(d.removed for d in blocks) == structure.units - len(structure)
    buffer = [d for d in blocks if d.phase == "buffer" and d.removed]
    assert [d.xi for d in buffer] == sorted((d.xi for d in buffer), reverse=True)


@pytest.mark.parametrize("effects", ["full", "verdict"])
def test_the_engines_agree_and_batches_do_not_matter(digits_case, effects):
    model, calibration, structure = digits_case
    options = Options(alpha=0.005, granularity="block:4", effects=effects)
    run = {"options": options, "sink": Silence()}
    task = cswap.Classification()
    fast = walk(model, structure, calibration, task, **run)
    slow = walk(model, structure, calibration, task, engine=plain_engine, units_per_batch=1, **run)
    key = [(d.group, d.unit, d.verdict, d.removed) for d in fast if d.phase == "walk"]
    assert key == [(d.group, d.unit, d.verdict, d.removed) for d in slow if d.phase == "walk"]


@pytest.mark.parametrize("cut", [2, 7, 20, 61])
def test_a_run_torn_within_a_block_decides_the_block_again(digits_case, blocks, tmp_path, cut):
    """Lines of a block that is not whole are dropped, and the path comes out the same."""
    model, calibration, structure = digits_case
    options = Options(alpha=0.005, granularity="block:3")
    journal = Journal(tmp_path, calibration.classes)
    walk(model, structure, calibration, cswap.Classification(), options=options, sink=journal)
    journal.close()
    lines = (tmp_path / "path.jsonl").read_text().splitlines(keepends=True)
    assert len(lines) == len(blocks)
    (tmp_path / "path.jsonl").write_text("".join(lines[:cut]))
    held = read_journal(tmp_path, structure, calibration.classes, options.rule, options.block)
    of_last = [d for d in held if d.group == held[-1].group] if held else []
    assert len(held) <= cut
    assert len(of_last) % 3 == 0 or len(of_last) == structure[of_last[0].group].size
    again = walk(
        model, structure, calibration, cswap.Classification(), options=options, sink=Silence(), start=Start(tuple(held))
    )
    told, whole = _told(again), _told(blocks)
    assert [t[:5] + t[6:] for t in told] == [t[:5] + t[6:] for t in whole]
    np.testing.assert_allclose([t[5] for t in told], [t[5] for t in whole], rtol=1e-4, atol=1e-7)


def test_what_is_no_block_is_said():
    with pytest.raises(InputError, match="granularity: expected unit or block:N, got 'block:0'"):
        Options(granularity="block:0")
