"""How often certificates are wrong: populations of scores whose true loss is exactly τ, selection repeated inside each repetition.

    python benchmarks/certificates.py [--repeats 1000] [--seed 0]

In every repetition eight candidates of equal true loss (τ in one class, less in the others) lose what each loses on the same selection
samples, the one that looks best there is chosen, and it is certified on as many fresh samples: a certificate of "no class lost more than τ" is
at the edge of being false, so at most α of them may be issued. Two controls say that this could fail: the same claim from the samples that chose,
which must be wrong more often than α, and the least loss that so many samples can certify, which must be well below τ. And targets in fixed
order: a first one whose claim is true, then two at the edge, the chain of `in_fixed_order` beside a look at each of them whatever the others say.
Writes benchmarks/results/certificates.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np

from _machine import machine, write_result
from cswap.evaluate.bounds import BOUNDS, at_best
from cswap.evaluate.certificate import Certificate, certificate_of, in_fixed_order

TAU, ALPHA, CLASSES, CANDIDATES, SAMPLES = 0.02, 0.05, 10, 8, 2000
WHOLE = 20  # repetitions in which every class is bounded
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


def of(losses: Any, bound: str, seed: int) -> Certificate:
    """A certificate of one class's losses."""
    return certificate_of({"0": losses}, margin=TAU, alpha=ALPHA, bound=bound, seed=seed)


def one(shapes: tuple[Draw, ...], repeat: int, seed: int) -> dict[str, dict[str, float]]:
    """One repetition: by bound, what was issued falsely, and the smallest margin where every class was bounded."""
    rng = np.random.default_rng([seed, repeat])
    candidates = [shapes[i % len(shapes)] for i in range(CANDIDATES)]
    looks = [np.clip(draw(rng, (SAMPLES,), TAU), -1, 1) for draw in candidates]
    best = int(np.argmin([x.mean() for x in looks]))
    draw, found = candidates[best], {}
    fresh = np.clip(draw(rng, (SAMPLES,), TAU), -1, 1)
    others = (
        {str(k): np.clip(draw(rng, (SAMPLES,), TAU / 4), -1, 1) for k in range(1, CLASSES)} if repeat < WHOLE else {}
    )
    targets = [np.clip(draw(rng, (SAMPLES,), mean), -1, 1) for mean in (TAU / 4, TAU, TAU)]
    for bound in BOUNDS:
        c = certificate_of({"0": fresh, **others}, margin=TAU, alpha=ALPHA, bound=bound, seed=repeat)
        each = [of(x, bound, repeat) for x in targets]
        chain = in_fixed_order([(lambda made=made: made) for made in each])
        found[bound] = {
            "wrong": float(c.upper[0] <= TAU), "from_what_chose": float(of(looks[best], bound, repeat).holds),
            "chain": float(any(x.holds for x in chain[1:])), "each": float(any(x.holds for x in each[1:])),
            **({"smallest": c.smallest} if others else {}),
        }  # fmt: skip
    return found


def run() -> None:
    """Every population under every bound."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    found: dict[str, Any] = {}
    for name, shapes in POPULATIONS.items():
        rows = [one(shapes, repeat, given.seed) for repeat in range(given.repeats)]
        found[name] = {
            b: {
                **{key: int(sum(r[b][key] for r in rows)) for key in ("wrong", "from_what_chose", "chain", "each")},
                "smallest_margin_median": float(np.median([r[b]["smallest"] for r in rows if "smallest" in r[b]])),
            }
            for b in BOUNDS
        }
        print(name, found[name], flush=True)
    write_result(
        "certificates",
        {
            "command": f"python benchmarks/certificates.py --repeats {given.repeats} --seed {given.seed}", **machine(), "seed": given.seed,
            "repeats": given.repeats, "tau": TAU, "alpha": ALPHA, "classes": CLASSES, "candidates": CANDIDATES, "samples": SAMPLES,
            "at_best": {b: at_best(SAMPLES, ALPHA, b) for b in BOUNDS if b != "t"}, "populations": found, "about": {f.__name__: " ".join((f.__doc__ or "").split()) for f in SHAPES},
        },
    )  # fmt: skip


if __name__ == "__main__":
    run()
