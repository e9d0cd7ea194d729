"""How often certificates are wrong: populations of scores whose true loss is exactly τ, selection repeated inside each repetition.

    python benchmarks/certificates.py [--repeats 1000] [--seed 0]

In every repetition eight candidates of equal true loss (τ in one class, less in the others) are drawn, the one that looks best on a
selection sample is chosen, and it is certified on fresh samples: a certificate of "no class lost more than τ" is at the edge of being
false, so at most α of them may be issued. Writes benchmarks/results/certificates.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np

from _machine import machine, write_result
from cswap.evaluate.bounds import BOUNDS
from cswap.evaluate.certificate import certificate_of

TAU, ALPHA, CLASSES, CANDIDATES, SAMPLES, SELECTION = 0.02, 0.05, 10, 8, 100, 32
WHOLE = 100  # repetitions in which every class is bounded
Draw = Callable[[np.random.Generator, tuple[int, ...], float], Any]


def rare(rng: np.random.Generator, shape: tuple[int, ...], mean: float) -> Any:
    """Few samples lose nearly all of their score: a prediction that flips."""
    return np.where(rng.random(shape) < mean / 0.9, 0.9, 0.0)


def spread(rng: np.random.Generator, shape: tuple[int, ...], mean: float) -> Any:
    """Gains and losses about alike, clipped where scores end (symmetric, so that the mean stays)."""
    return mean + np.clip(rng.normal(0, 0.1, shape), -0.5, 0.5)


def skewed(rng: np.random.Generator, shape: tuple[int, ...], mean: float) -> Any:
    """Many small losses with a long tail, Beta(0.2, 0.2·(1 − μ)/μ)."""
    return rng.beta(0.2, 0.2 * (1 - mean) / mean, shape)


def gains(rng: np.random.Generator, shape: tuple[int, ...], mean: float) -> Any:
    """Most samples gain a little, few lose much."""
    chance = (mean + 0.01) / 0.81
    return np.where(rng.random(shape) < chance, 0.8, -0.01)


SHAPES = (rare, spread, skewed, gains)
POPULATIONS: dict[str, tuple[Draw, ...]] = {**{f.__name__: (f,) for f in SHAPES}, "chosen among all four": SHAPES}


def run() -> None:
    """Every population under every bound."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    found: dict[str, Any] = {}
    for name, shapes in POPULATIONS.items():
        issued = dict.fromkeys(BOUNDS, 0)
        smallest: dict[str, list[float]] = {b: [] for b in BOUNDS}
        for repeat in range(given.repeats):
            rng = np.random.default_rng([given.seed, repeat])
            means = np.full(CLASSES, TAU / 4)
            means[0] = TAU
            candidates = [shapes[i % len(shapes)] for i in range(CANDIDATES)]
            looks = [sum(d(rng, (SELECTION,), m).mean() for m in means) for d in candidates]
            draw = candidates[int(np.argmin(looks))]
            losses = {str(k): np.clip(draw(rng, (SAMPLES,), m), -1, 1) for k, m in enumerate(means)}
            for bound in BOUNDS:
                edge = (
                    losses if repeat < WHOLE else {"0": losses["0"]}
                )  # class 0 alone decides whether the claim is false
                c = certificate_of(edge, margin=TAU, alpha=ALPHA, bound=bound, seed=repeat)
                issued[bound] += c.upper[0] <= TAU
                if repeat < WHOLE:
                    smallest[bound].append(c.smallest)
        found[name] = {b: {"wrong": issued[b], "smallest_margin_median": float(np.median(smallest[b]))} for b in BOUNDS}
    write_result(
        "certificates",
        {
            "command": f"python benchmarks/certificates.py --repeats {given.repeats} --seed {given.seed}", **machine(), "seed": given.seed,
            "repeats": given.repeats, "tau": TAU, "alpha": ALPHA, "classes": CLASSES, "candidates": CANDIDATES, "samples": SAMPLES,
            "selection": SELECTION, "populations": found, "about": {f.__name__: " ".join((f.__doc__ or "").split()) for f in SHAPES},
        },
    )  # fmt: skip


if __name__ == "__main__":
    run()
