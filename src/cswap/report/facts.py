"""What an artifact says, as plain values for a page: figures, curve, units, classes, decisions, how to run it again."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

from cswap.artifacts.files import CURVE, SUMMARY, read_json
from cswap.artifacts.folder import Artifact, kept_of, removed_from
from cswap.methods.path import PruningPath
from cswap.report.again import command_of
from cswap.structure.groups import Group, Removed
from cswap.types import RATIO_KINDS, TESTS, Decision, Verdict

_ALL_CLASSES = 40  # up to here a page carries the effect on every class, else on the most telling ones
_TELLING = 10
_POINTS = 400  # of the line of calibration quality
_LISTED = 60  # units listed a class
_CODE = {None: "-", Verdict.CRITICAL: "c", Verdict.NEUTRAL: "n", Verdict.DETRIMENTAL: "d"}


def facts_of(artifact: Artifact) -> dict[str, Any]:
    """Everything the report shows, JSON values alone. Raises ArtifactError for an artifact that is not whole."""
    path, manifest = artifact.path, artifact.manifest
    summary = artifact.summary if (artifact.folder / SUMMARY).exists() else {}
    steps = int(manifest["steps"])
    gone = removed_units(artifact)
    units = [_group(g, path, set(gone.get(g.name, ()))) for g in reversed(path.structure.groups)]
    return {
        "name": artifact.folder.resolve().name,
        "model": _model(manifest),
        "method": path.method,
        "task": manifest.get("task", "classification"),
        "target": summary.get("target", manifest["target"]),
        "ended": summary.get("ended", path.ended),
        "ratio": manifest["ratio"],
        "classes": list(path.classes),
        "units_total": path.structure.units,
        "units_gone": int(sum(len(u) for u in gone.values())),
        "verdicts": path.verdicts(),
        "figures": _figures(artifact, summary),
        "headline": _headline(summary),
        "held_out_samples": summary.get("held_out_samples"),
        "calibration_samples": summary.get("calibration_samples"),
        "by_class": _by_class(path, summary),
        "curve": _curve(artifact, summary),
        "groups": units,
        "walk": [_line(d) for d in path],
        "steps": steps,
        "cliffs": [str(c) for c in path.cliffs],
        "left_out": [x.as_dict() for x in path.structure.left_out],
        "uncalled": list(path.structure.uncalled),
        "recovery": manifest.get("recovery"),
        "certificate": manifest.get("certificate"),
        "aim": summary.get("aim"),
        "engine": summary.get("engine", ""),
        "notes": summary.get("notes", []),
        "seconds": summary.get("seconds", {}),
        "agreement": manifest.get("agreement"),
        "again": again(artifact, summary),
        "sensitivity": _sensitivity(path),
    }


def removed_units(artifact: Artifact) -> Removed:
    """Units the artifact's network does not have, by group: from the original indices kept of every tensor. Raises ArtifactError."""
    return removed_from(artifact.folder, artifact.structure, kept_of(artifact.folder, artifact.manifest))


def _model(manifest: dict[str, Any]) -> str:
    factory = manifest.get("factory")
    return str(factory["spec"]) if isinstance(factory, dict) else "a module from Python"


def _headline(summary: dict[str, Any]) -> str | None:
    quality = summary.get("baseline", {}).get("quality", {})
    return next((n for n, v in quality.items() if n != "by_class" and v is not None), None)


def _figures(artifact: Artifact, summary: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows (name, kind, before, after): quality, params, MACs, latency, memory, units."""
    s, ratio = artifact.structure, artifact.manifest["ratio"]
    before, after = summary.get("baseline", {}), summary.get("pruned", {})
    rows: list[dict[str, Any]] = []
    for name, value in before.get("quality", {}).items():
        if name != "by_class" and value is not None:
            rows.append({"name": name, "kind": "quality", "before": value, "after": after["quality"][name]})
    for key, total in (("params", s.total_params), ("macs", s.total_macs)):
        left = after.get(key, round(total * (1 - ratio[key])))
        label = {"params": "parameters", "macs": "MACs, one sample"}[key]
        rows.append({"name": label, "kind": "count", "before": before.get(key, total), "after": left})
    rows.append(
        {"name": "units", "kind": "count", "before": s.units, "after": s.units - round(s.units * ratio["units"])}
    )
    for batch, ms in before.get("latency_ms", {}).items():
        rows.append(
            {"name": f"latency, batch {batch}", "kind": "ms", "before": ms, "after": after["latency_ms"][batch]}
        )
    for name, value in before.items():
        if name.startswith("peak") and isinstance(value, int | float):
            rows.append({"name": name.replace("_", " "), "kind": "count", "before": value, "after": after.get(name)})
    return rows


def _curve(artifact: Artifact, summary: dict[str, Any]) -> dict[str, Any]:
    """By kind of ratio: calibration quality along the path, held-out quality at points, and the chosen point."""
    headline = _headline(summary)
    line: list[tuple[dict[str, float], float]] = []
    for d in artifact.path:
        if d.quality is not None and (not line or line[-1][0] != d.ratio.as_dict()):
            line.append((d.ratio.as_dict(), d.quality))
    if len(line) > _POINTS:
        line = [line[i] for i in np.unique(np.linspace(0, len(line) - 1, _POINTS).astype(int))]
    held = artifact.folder / CURVE
    points = read_json(held).get("points", []) if held.exists() and headline else []
    chosen = summary.get("pruned", {}).get("quality", {}).get(headline) if headline else None
    return {
        kind: {
            "calibration": [[r[kind], q] for r, q in line],
            "held_out": sorted([p["ratio"][kind], p["quality"][headline]] for p in points),
            "chosen": None if chosen is None else [artifact.manifest["ratio"][kind], chosen],
        }
        for kind in RATIO_KINDS
    }


def _sensitivity(path: PruningPath) -> dict[str, Any] | None:
    """What `joint` measured: by group, from input to output, [part of the group, loss of the class that lost most, that
    class, what it was measured on and the bound that margins are held against]."""
    held = path.sensitivity
    if not held:
        return None
    rows = []
    for name in (g.name for g in reversed(path.structure.groups) if g.name in held["groups"]):
        points: list[list[Any]] = [[0.0, 0.0, "", ""]]
        for probe in sorted(held["groups"][name]["probes"], key=lambda p: p["ratio"]):
            losses = [-np.inf if v is None else v for v in probe["by_class"]]
            k = int(np.argmax(losses))
            looked_at = probe.get("samples") or held["samples"]  # older artifacts do not say
            about = f"on {looked_at:,} samples; bound {probe['margin']:.3f}"
            points.append([float(probe["ratio"]), float(losses[k]), path.classes[k], about])
        rows.append({"name": name, "size": held["groups"][name]["size"], "points": points})
    return {"groups": rows, "margins": held["margins"], "samples": held["samples"], "alpha": held["alpha"]}


def _group(group: Group, path: PruningPath, gone: set[int]) -> dict[str, Any]:
    """One row of the map; lists have one entry a unit."""
    n, k = group.size, len(path.classes)
    own = [d for d in path if d.group == group.name]
    found: dict[str, Any] = {
        "name": group.name, "size": n, "gone": [int(u in gone) for u in range(n)], "verdict": ["-"] * n, "xi": [None] * n,
        "test": [0] * n, "end": [0] * n, "needs": [0] * n, "hurts": [0] * n, "edge": [0] * n,
        "written_by": [s.module for s in group.producers], "read_by": [s.module for s in group.consumers],
    }  # fmt: skip
    mean, p = np.full((n, k), np.nan, dtype=np.float32), np.full((n, k), np.nan, dtype=np.float32)
    telling: list[Any] = [[] for _ in range(n)]
    for d in own:
        u = d.unit
        if d.phase in TESTS:
            found["verdict"][u], found["test"][u], found["edge"][u] = _CODE[d.verdict], d.step, int(d.knife_edge)
        if d.removed:
            found["end"][u] = d.step
        if d.xi is not None:
            found["xi"][u] = _short(d.xi)
        if d.effects is not None:
            found["needs"][u], found["hurts"][u] = int((d.effects.pi < 0).sum()), int((d.effects.pi > 0).sum())
            mean[u], p[u] = (
                d.effects.mean,
                np.maximum(d.effects.p, 1e-37, where=d.effects.p > 0, out=d.effects.p.copy()),
            )
            telling[u] = [[e.index, _short(e.mean), _short(e.p), e.pi] for e in d.effects.telling(_TELLING)]
    tested = [d for d in own if d.phase in TESTS]
    found |= {
        "counts": {
            "tested": len(tested),
            "removed": len(gone),
            **{str(v): sum(d.verdict is v for d in tested) for v in Verdict},
        },
        "signs": _signs(own, n, k) if k <= _ALL_CLASSES else None,
        "effects": [_packed(mean), _packed(p)] if k <= _ALL_CLASSES else None,
        "telling": telling if k > _ALL_CLASSES else None,
    }
    return found


def _signs(own: list[Decision], n: int, k: int) -> str:
    """π of every unit and class as one of `-0+.` each, row by row; `.` was not asked."""
    rows = np.full((n, k), ".")
    for d in own:
        if d.effects is not None:
            rows[d.unit] = np.where(d.effects.count > 0, np.array(["-", "0", "+"])[d.effects.pi + 1], ".")
    return "".join(rows.ravel().tolist())


def _packed(values: Any) -> str:
    return base64.b64encode(np.ascontiguousarray(values, dtype="<f4").tobytes()).decode()


def _short(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else float(f"{value:.4g}")


def _line(d: Decision) -> list[Any]:
    """step, phase, group, unit, verdict, ξ, score, removed, reason, and the ratios reached."""
    r = d.ratio
    return [
        d.step, d.phase, d.group, d.unit, "" if d.verdict is None else str(d.verdict), _short(d.xi), _short(d.score),
        int(d.removed), d.reason, _short(r.params), _short(r.macs), _short(d.quality),
    ]  # fmt: skip


def _by_class(path: PruningPath, summary: dict[str, Any]) -> list[dict[str, Any]]:
    """Every class: quality before and after, units that need it, that it alone needs, and that hurt it, largest effect first."""
    latest = {(d.group, d.unit): d.effects for d in path if d.effects is not None}
    keys = list(latest)
    k = len(path.classes)
    pi = np.stack([e.pi for e in latest.values()]) if keys else np.zeros((0, k), dtype=np.int64)
    mean = np.stack([e.mean for e in latest.values()]) if keys else np.zeros((0, k))
    needs = pi < 0
    alone = needs & (needs.sum(1, keepdims=True) == 1)
    before, after = (summary.get(n, {}).get("quality", {}).get("by_class") for n in ("baseline", "pruned"))

    def listed(mask: Any, c: int) -> list[list[Any]]:
        rows = np.flatnonzero(mask[:, c])
        rows = rows[np.argsort(-np.abs(np.nan_to_num(mean[rows, c])), kind="stable")][:_LISTED]
        return [[*keys[i], _short(float(mean[i, c]))] for i in rows]

    return [
        {
            "name": name,
            "before": None if before is None else before[c],
            "after": None if after is None else after[c],
            "needs": int(needs[:, c].sum()),
            "alone": int(alone[:, c].sum()),
            "hurts": int((pi[:, c] > 0).sum()),
            "alone_units": listed(alone, c),
            "hurting_units": listed(pi > 0, c),
        }
        for c, name in enumerate(path.classes)
    ]


def _part(manifest: dict[str, Any], name: str) -> dict[str, Any]:
    part = manifest.get(name)
    return part if isinstance(part, dict) else {}


def again(artifact: Artifact, summary: dict[str, Any]) -> dict[str, Any]:
    """What another run needs: command, versions, seed, options and hashes."""
    m = artifact.manifest
    run, source, factory = (_part(m, name) for name in ("run", "source", "factory"))
    hashes = {
        "pruned weights (sha256)": m["weights"]["sha256"],
        "original weights file (sha256)": source.get("weights_sha256"),
        "original weights as loaded": run.get("weights"),
        "calibration set": run.get("data"),
        "factory file (sha256)": factory.get("sha256"),
    }
    return {
        "command": command_of(m, summary.get("target"), summary),
        "versions": {"cswap": m.get("cswap_version"), "torch": m.get("torch_version")},
        "seed": m.get("seed"),
        "options": m.get("options", {}),
        "hashes": {n: h for n, h in hashes.items() if h},
        "pinned": run.get("pinned") or {},
    }
