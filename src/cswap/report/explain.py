"""Why a unit was kept or removed, and what each class needs: told from a path alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cswap.errors import InputError
from cswap.methods.path import PruningPath
from cswap.types import TESTS, ClassEffect, Decision, IntArray


def _effect(e: ClassEffect) -> dict[str, Any]:
    if e.p is None:
        return {"class": e.name, "samples": 0, "mean": None, "p": None, "pi": None, "says": "not asked"}
    says = {-1: "needs it", 0: "no significant effect", 1: "is better without it"}[e.pi]
    return {"class": e.name, "samples": e.count, "mean": e.mean, "p": e.p, "pi": e.pi, "says": says}


def _story(steps: list[Decision], gone: bool) -> dict[str, Any]:
    """One unit: its verdict when it was tested, and what became of it; `gone`: the network does not have it."""
    first, last = steps[0], steps[-1]
    later = last.step if last.removed and not gone else None
    last = last if later is None else first
    scored = next((d for d in steps if d.phase == "score"), first)
    effects = scored.effects
    return {
        "group": first.group,
        "unit": first.unit,
        "verdict": None if first.verdict is None else str(first.verdict),
        "xi": scored.xi,
        "score": first.score,
        "removed": gone,
        "removed_later": later,
        "step": last.step,
        "phase": last.phase,
        "reason": last.reason,
        "needed_by": [] if effects is None else [e.name for e in effects.values() if e.pi < 0],
        "hurts": [] if effects is None else [e.name for e in effects.values() if e.pi > 0],
        "effects": [] if effects is None else [_effect(e) for e in effects.values()],
    }


def _probe(path: PruningPath, group: str, unit: int) -> dict[str, Any] | None:
    """What `joint` measured of the smallest cut that holds the unit; None where it measured none.

    place: the unit's in its group's order, from 1; by_class: mean losses of score; margin: the largest of their upper bounds.
    """
    held = (path.sensitivity or {}).get("groups", {}).get(group)
    if held is None:
        return None
    place = held["order"].index(unit) + 1
    probe = min((p for p in held["probes"] if p["units"] >= place), key=lambda p: p["units"], default=None)
    if probe is None:
        return None
    by_class = dict(zip(path.classes, probe["by_class"], strict=True))
    return {
        "place": place, "of": held["size"], "units": probe["units"], "margin": probe["margin"], "samples": probe["samples"],
        "by_class": by_class,
    }  # fmt: skip


def explanation(
    path: PruningPath,
    group: str | None = None,
    unit: int | None = None,
    class_: str | None = None,
    gone: Mapping[str, IntArray] | None = None,
) -> dict[str, Any]:
    """Units of the path with their story, filtered; raises InputError for a name the artifact does not have.

    gone: units that the network in question does not have, by group; without it, all that the path removes.
    """
    if unit is not None and group is None:
        raise InputError("unit: --unit needs --group")
    if group is not None:
        size = path.structure[group].size
        if unit is not None and not 0 <= unit < size:
            raise InputError(f"unit: group {group} has units 0 to {size - 1}, got {unit}")
    if class_ is not None and class_ not in path.classes:
        if not (class_.isdecimal() and int(class_) < len(path.classes)):
            raise InputError(f"class: expected one of {', '.join(path.classes[:12])}, got {class_!r}")
        class_ = path.classes[int(class_)]
    by_unit: dict[tuple[str, int], list[Decision]] = {}
    for d in path:
        if (group is None or d.group == group) and (unit is None or d.unit == unit):
            by_unit.setdefault((d.group, d.unit), []).append(d)
    if gone is None:
        out = {(d.group, d.unit) for d in path if d.removed}
    else:
        out = {(name, int(n)) for name, units in gone.items() for n in units}
    stories = [_story(own, key in out) | {"probe": _probe(path, *key)} for key, own in by_unit.items()]
    if class_ is not None and unit is None:  # of one unit all is told, whatever the class says of it
        stories = [s for s in stories if class_ in s["needed_by"] or class_ in s["hurts"]]
        stories.sort(key=lambda s: next(e["mean"] for e in s["effects"] if e["class"] == class_))
    groups = [
        _group_line(path, g.name, g.size, sum(name == g.name for name, _ in out))
        for g in path.structure
        if group in (None, g.name)
    ]
    return {
        "method": path.method, "classes": list(path.classes), "group": group, "unit": unit, "class": class_,
        "groups": groups, "units": stories,
    }  # fmt: skip


def _group_line(path: PruningPath, name: str, size: int, removed: int) -> dict[str, Any]:
    own = [d for d in path if d.group == name]
    tested = [d for d in own if d.phase in TESTS]
    return {
        "group": name, "units": size, "tested": len(tested), "removed": removed,
        **{v: sum(d.verdict == v for d in tested) for v in ("critical", "neutral", "detrimental")},
    }  # fmt: skip
