"""Group-sequential tests: the error rate is that of α, and a walk's verdicts are those of a test by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as scipy_stats

import cswap
from cswap.causal.sequential import STAGES
from cswap.errors import InputError
from cswap.methods.options import Options


def by_hand(d: np.ndarray, targets: np.ndarray, classes: int, alpha: float) -> tuple[bool, int]:
    """Whether some class needs the unit, and on how many samples that was seen; d: differences σ* − σ (M,)."""
    seen_in_all = 0
    for seen, share in STAGES:
        needed, seen_in_all = False, 0
        for k in range(classes):
            own = d[targets == k]
            own = own[: len(own) if seen == 1 else max(2, round(seen * len(own)))]
            seen_in_all += len(own)
            if np.ptp(own) == 0:
                needed |= own[0] < 0
            else:
                needed |= own.mean() < 0 and scipy_stats.ttest_1samp(own, 0).pvalue < share * alpha
        if needed:
            return True, seen_in_all
    return False, seen_in_all


def test_shares_add_up_and_the_error_rate_is_controlled():
    """Without an effect a class is called needy, at any stage, in at most α/2 of the cases (one of two sides)."""
    assert sum(share for _, share in STAGES) == pytest.approx(1)
    rng, alpha, repeats = np.random.default_rng(0), 0.05, 4000
    wrong = sum(by_hand(rng.normal(0, 1, 64), np.zeros(64), 1, alpha)[0] for _ in range(repeats))
    assert 0.4 * alpha / 2 * repeats < wrong < alpha / 2 * repeats + 2 * (alpha / 2 * repeats) ** 0.5


def test_a_walk_s_verdicts_and_samples_are_those_by_hand(digits_case):
    model, calibration, structure = digits_case
    structure = structure.select((next(iter(structure)).name,))
    group = next(iter(structure))
    path = cswap.prune_path(
        model, calibration, structure=structure, effects="sequential", target="noncritical", alpha=0.2
    )
    store = cswap.measure_differences(model, structure, calibration, cswap.Classification())
    fewer = 0
    for d in path:
        if any(e.removed for e in path if e.step < d.step):
            break  # from here on the network is another
        differences = store.differences[group.name][d.unit].astype(np.float64)
        differences[np.abs(differences) <= 1e-6] = 0
        needed, samples = by_hand(differences, calibration.targets, len(calibration.classes), 0.2)
        assert (str(d.verdict) == "critical") == needed, d.unit
        assert int(d.effects.count.sum()) == samples
        fewer += samples < len(calibration)
    assert fewer


def test_a_complete_path_scores_what_the_walk_left_out(digits_case):
    model, calibration, structure = digits_case
    path = cswap.prune_path(model, calibration, structure=structure, effects="sequential")
    assert sum(d.removed for d in path) == structure.units - len(structure)
    walked = [d for d in path if d.phase == "walk"]
    assert any(d.xi is None for d in walked)
    assert all(d.xi is not None for d in path if d.phase == "buffer")


def test_what_does_not_go_together_is_said():
    with pytest.raises(InputError, match="effects: sequential goes with --vote class"):
        Options(effects="sequential", vote="pooled")
