"""The order in which critical units go."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from cswap.methods.options import Options
from cswap.methods.ranking import cheapest_first
from cswap.structure.ledger import Ledger
from cswap.types import Decision


def ordered(waiting: Sequence[Decision], ledger: Ledger, options: Options) -> list[Decision]:
    """By largest signed ξ, or smallest |ξ| (`buffer_order`); ties in the order given.

    With `per` (ours) by the smallest loss, −ξ or |ξ|, a parameter or MAC that goes, as the network stands at each step from
    `ledger` on; units that the network is better without first, the largest gain before the others. Last units of their
    group come at the end.
    """
    loss = {(d.group, d.unit): abs(d.xi or 0.0) if options.buffer_order == "abs" else -(d.xi or 0.0) for d in waiting}
    by_loss = sorted(waiting, key=lambda d: loss[d.group, d.unit])
    if options.per == "unit":
        return by_loss
    gains = [d for d in by_loss if loss[d.group, d.unit] < 0]
    left: dict[str, list[tuple[float, int]]] = {}
    for d in by_loss[len(gains) :]:
        left.setdefault(d.group, []).append((loss[d.group, d.unit], d.unit))
    after = copy.deepcopy(ledger)
    for d in gains:
        if not after.last(after.structure[d.group], [d.unit]):
            after.remove(after.structure[d.group], d.unit)
    of = {(d.group, d.unit): d for d in by_loss}
    order = gains + [of[key] for key in cheapest_first(after, left, options.per)]
    first = {(d.group, d.unit) for d in order}
    return order + [d for d in by_loss if (d.group, d.unit) not in first]
