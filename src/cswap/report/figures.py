"""Plots as self-contained HTML; the only room that draws."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

# validated for colour-blind readers on white; the method of interest is drawn heavier, not only coloured
_COLOURS = ("#2a78d6", "#eb6834", "#1baf7a", "#8a63d2", "#b58900")
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x")


def curve_page(
    curves: dict[str, list[dict[str, Any]]], path: Path, *, title: str, headline: str = "accuracy", kind: str = "params"
) -> None:
    """Quality against the fraction removed, one line a method, as one HTML file that opens offline."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for i, (name, points) in enumerate(curves.items()):
        style = i % len(_COLOURS)
        figure.add_trace(
            go.Scatter(
                x=[p["ratio"][kind] for p in points],
                y=[p["quality"][headline] for p in points],
                name=name,
                mode="lines+markers",
                line={"color": _COLOURS[style], "dash": _DASHES[style], "width": 3 if i == 0 else 2},
                marker={"symbol": _SYMBOLS[style], "size": 9},
                hovertemplate=f"{name}<br>{kind} removed %{{x:.1%}}<br>{headline} %{{y:.1%}}<extra></extra>",
            )
        )
    what = {"params": "parameters", "macs": "MACs", "units": "units"}[kind]
    figure.update_layout(
        title=title, template="plotly_white", hovermode="closest", font={"size": 15}, legend={"title": "method"},
        margin={"l": 70, "r": 30, "t": 70, "b": 60},
    )  # fmt: skip
    figure.update_xaxes(title=f"{what} removed", tickformat=".0%", range=[-0.02, 0.85])
    figure.update_yaxes(title=f"{headline} on held-out data", tickformat=".0%", range=[0, 1.02])
    figure.write_html(str(path), include_plotlyjs=True, full_html=True)


_MORE = ("#c2356b", "#4d4d4d", "#00838f", "#9e6b2f", "#6a8f00", "#5c5ccf", "#b03a2e", "#117a65")
_KINDS = {"params": "parameters removed", "macs": "MACs removed", "units": "units removed"}


def _unpruned_ms(method: dict[str, Any]) -> float:
    """Mean over seeds of the unpruned network's latency, batch 64, as timed beside the method's points."""
    runs = method["by_seed"].values()
    return sum(float(r["points"][0]["latency_ms"]["64"]) for r in runs) / len(runs)


def notes_of(result: dict[str, Any]) -> dict[str, list[str]]:
    """What a comparison's methods have to say of their figures, once each, and the methods that say it."""
    found: dict[str, list[str]] = {}
    for name, method in result["methods"].items():
        for note in {n: None for run in method["by_seed"].values() for n in run.get("notes", ())}:
            found.setdefault(note, []).append(name)
    return found


def compare_page(result: dict[str, Any], path: Path, *, title: str) -> None:
    """Every method of a comparison: quality against what was removed, in each kind, and against latency, one HTML file.

    A line is the mean over seeds, a bar its standard deviation. What is recovered is thinner, with hollow markers; the
    buttons show one way of recovery at a time, at first the plain networks. Latency is in fractions of the unpruned network's, which is timed in
    turns with what the method leaves of it: a machine's own drift between methods is no speed-up.
    """
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    headline = result["headline"]
    panels = [k for k in _KINDS if any(k in m["curves"] for m in result["methods"].values())]
    ways = result["recover"]
    shown: list[str] = []
    timed = any("ms_64" in r for m in result["methods"].values() for rows in m["curves"].values() for r in rows)
    drawn = [*panels, *(["ms_64"] if timed else [])]
    titles = [f"against {_KINDS[k]}" if k in _KINDS else "against latency, batch 64" for k in drawn]
    figure = make_subplots(
        rows=-(-len(drawn) // 2), cols=2, horizontal_spacing=0.09, vertical_spacing=0.13, subplot_titles=titles
    )
    colours = (*_COLOURS, *_MORE)
    for i, (name, method) in enumerate(result["methods"].items()):
        line = {"color": colours[i % len(colours)], "dash": _DASHES[i % len(_DASHES)], "width": 3.5 if i == 0 else 2}
        for place, kind in enumerate(drawn):
            rows = method["curves"].get(kind if kind in _KINDS else panels[0], [])
            whole = 1.0 if kind in _KINDS else _unpruned_ms(method)
            for w, how in enumerate(ways):
                points = [  # in the order of what was asked for: latency is noisy, and a line by it would zigzag
                    (r[kind]["mean"] / whole, r["quality"][how]["mean"], r["quality"][how]["std"])
                    for r in rows
                    if kind in r and how in r["quality"]
                ]
                if not points:
                    continue
                x, y = [p[0] for p in points], [p[1] for p in points]
                shown.append(how)
                figure.add_trace(
                    go.Scatter(
                        x=x, y=y, name=name + (f" + {how}" if w else ""), legendgroup=f"{name} {how}", showlegend=place == 0,
                        mode="lines+markers", visible=w == 0, line={**line, "width": 1.2 if w else line["width"]},
                        marker={"symbol": _SYMBOLS[(i + w) % len(_SYMBOLS)] + ("-open" if w else ""), "size": 8},
                        error_y={"array": [p[2] or 0.0 for p in points], "visible": any(p[2] for p in points), "thickness": 1},
                        hovertemplate=f"{name} {how}<br>%{{x:.3g}}<br>{headline} %{{y:.1%}}<extra></extra>",
                    ),
                    row=place // 2 + 1, col=place % 2 + 1,
                )  # fmt: skip
    for place, kind in enumerate(drawn):
        where = {"row": place // 2 + 1, "col": place % 2 + 1}
        if kind in _KINDS:
            figure.update_xaxes(title=_KINDS[kind], tickformat=".0%", range=[-0.02, 0.85], **where)
        else:
            # from where the first network is: a small one is hardly faster, and its lines would lie on each other
            figure.update_xaxes(title="of the unpruned network's time, faster to the left", tickformat=".0%", **where)
        figure.update_yaxes(title=f"{headline}, held out", tickformat=".0%", range=[0, 1.02], **where)
    if len(ways) > 1:
        choices = [("all", [True] * len(shown))] + [
            ("plain" if h == "none" else h, [s == h for s in shown]) for h in ways
        ]
        figure.update_layout(updatemenus=[{
            "type": "buttons", "direction": "right", "x": 1.0, "xanchor": "right", "y": 1.09, "active": 1,
            "buttons": [{"label": text, "method": "restyle", "args": ["visible", mask]} for text, mask in choices],
        }])  # fmt: skip
    if result["refused"]:
        title += f"<br><sup>left out, as compare.json says why: {', '.join(result['refused'])}</sup>"
    notes = notes_of(result)
    for i, (note, of) in enumerate(notes.items()):
        figure.add_annotation(
            text=html.escape(f"{', '.join(of)}: {note}"[:200]), xref="paper", yref="paper", x=0, y=0, yshift=-66 - 18 * i, xanchor="left",
            showarrow=False, font={"size": 12, "color": "#4d4d4d"},
        )  # fmt: skip
    figure.update_layout(
        title=title, template="plotly_white", font={"size": 14}, height=900 if len(drawn) > 2 else 520, hovermode="closest",
        legend={"title": "method", "font": {"size": 13}}, margin={"l": 70, "r": 30, "t": 90, "b": 60 + 22 * len(notes)},
    )  # fmt: skip
    figure.write_html(str(path), include_plotlyjs=True, full_html=True)
