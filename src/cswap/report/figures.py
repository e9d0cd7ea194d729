"""Plots as self-contained HTML; the only room that draws."""

from __future__ import annotations

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
