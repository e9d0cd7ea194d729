"""What a comparison says of two seeds that are known: means, deviations, the table in the terminal and the lines of the page."""

from __future__ import annotations

import copy
import json
import re

import pytest

from cswap.cli import render
from cswap.compare.summary import spread
from cswap.report.figures import compare_page

WHOLE = {"accuracy": 0.9, "by_class": [0.95, 0.85, None]}


def _point(params, macs, accuracy, by_class, fitted, ms):
    quality = {"accuracy": fitted, "by_class": [fitted, fitted, None]}
    return {
        "steps": 1, "ratio": {"params": params, "macs": macs, "units": params}, "asked": {"params": 0.5, "macs": 0.25},
        "quality": {"accuracy": accuracy, "by_class": by_class}, "recovered": {"lstsq": {"quality": quality}},
        "latency_ms": {"1": ms, "64": 10 * ms},
    }  # fmt: skip


def _run(seconds, *point):
    first = {
        "steps": 0, "ratio": dict.fromkeys(("params", "macs", "units"), 0.0), "asked": {"params": 0.0, "macs": 0.0}, "quality": WHOLE,
        "recovered": {"lstsq": {"quality": WHOLE}}, "latency_ms": {"1": 8.0, "64": 80.0},
    }  # fmt: skip
    return {
        "seconds": seconds,
        "sauce": {"none": 0.5 + seconds / 100, "lstsq": None},
        "points": [first, _point(*point)],
    }


@pytest.fixture
def result():
    one = spread(
        {
            "3": _run(10.0, 0.50, 0.30, 0.60, [0.80, 0.40, None], 0.80, 4.0),
            "4": _run(14.0, 0.52, 0.34, 0.70, [0.70, 0.70, None], 0.86, 6.0),
        },
        "accuracy",
    )
    other = spread({"3": _run(1.0, 0.5, 0.5, 0.10, [0.1, 0.1, None], 0.2, 8.0)}, "accuracy")
    return {
        "headline": "accuracy", "kinds": ["params", "macs"], "methods": {"cswap": one, "random:layer": other}, "recover": ["none", "lstsq"],
        "refused": {}, "seeds": [3, 4], "held_out_samples": 40, "per_class": 6, "classes": ["cat", "dog", "none there"],
        "unpruned": {"quality": WHOLE},
    }  # fmt: skip


def test_means_and_deviations_over_seeds(result):
    found = result["methods"]["cswap"]
    start, row = found["curves"]["params"]
    assert start["quality"]["none"] == {"mean": pytest.approx(0.9), "std": 0.0}
    assert (row["asked"], row["seeds"]) == (0.5, 2)
    root = 2**-0.5  # the deviation of two values is their distance by √2
    for key, (a, b) in {"params": (0.50, 0.52), "macs": (0.30, 0.34), "ms_1": (4, 6), "ms_64": (40, 60)}.items():
        assert row[key] == {"mean": pytest.approx((a + b) / 2), "std": pytest.approx((b - a) * root)}
    assert row["quality"]["none"] == {"mean": pytest.approx(0.65), "std": pytest.approx(0.1 * root)}
    assert row["quality"]["lstsq"] == {"mean": pytest.approx(0.83), "std": pytest.approx(0.06 * root)}
    cat, dog, absent = row["by_class"]["none"]
    assert cat == {"mean": pytest.approx(0.75), "std": pytest.approx(0.1 * root)}
    assert dog == {"mean": pytest.approx(0.55), "std": pytest.approx(0.3 * root)}
    assert absent is None
    assert (found["seconds"], found["seconds_std"]) == (12.0, pytest.approx(4 * root))
    assert found["sauce"] == {"none": {"mean": pytest.approx(0.62), "std": pytest.approx(0.04 * root)}}
    alone = result["methods"]["random:layer"]
    assert alone["curves"]["macs"][1]["quality"]["none"] == {"mean": pytest.approx(0.1), "std": None}
    assert alone["seconds_std"] is None


def test_the_terminal_says_the_same(result, capsys, tmp_path):
    render.comparison(result, tmp_path)
    rows = [re.split(r"\s{2,}", line.strip()) for line in capsys.readouterr().out.splitlines()]
    assert ["cswap", "0.900 ±0.000", "0.650 ±0.071", "0.620 ±0.028", "12.0"] in rows
    assert ["cswap + lstsq", "0.900 ±0.000", "0.830 ±0.042", "–", "12.0"] in rows
    assert ["random:layer", "0.900", "0.100", "1.0"] in rows  # by MACs
    assert ["cswap", "0.600", "dog", "0.850", "0.400", "4", "40"] in rows  # the first seed's
    assert ["cswap + lstsq", "0.800", "cat", "0.950", "0.800", "4", "40"] in rows
    assert ["random:layer", "0.100", "cat", "0.950", "0.100", "8", "80"] in rows


def test_what_is_declined_and_what_not_every_seed_reaches_is_marked(result, capsys, tmp_path):
    runs = copy.deepcopy(result["methods"]["cswap"]["by_seed"])
    runs["3"]["points"][1]["recovered"]["lstsq"]["declined"] = "it did not help"
    runs["4"]["points"].append({**runs["4"]["points"][1], "asked": {"params": 0.9}})
    runs["4"]["notes"] = ["it was slow"]
    render.comparison(result | {"methods": {"cswap": spread(runs, "accuracy")}}, tmp_path)
    said = capsys.readouterr().out
    rows = [re.split(r"\s{2,}", line.strip()) for line in said.splitlines()]
    assert ["cswap + lstsq", "0.900 ±0.000", "0.830 ±0.042°", "0.860*", "–", "12.0"] in rows
    assert "cswap: it was slow" in said
    assert "° declined" in said
    assert "* not reached by every seed" in said


def test_the_page_draws_each_method_where_it_is(result, tmp_path):
    compare_page(copy.deepcopy(result), tmp_path / "c.html", title="two seeds")
    page = (tmp_path / "c.html").read_text()
    at = page.index("[", page.index("Plotly.newPlot("))
    traces, _ = json.JSONDecoder().raw_decode(page[at:])
    plain = [t for t in traces if t["name"] == "cswap"]
    by_params, by_macs, by_time = plain
    assert by_params["x"] == pytest.approx([0.0, 0.51])
    assert by_params["y"] == pytest.approx([0.9, 0.65])
    assert by_params["error_y"]["array"] == pytest.approx([0.0, 0.1 * 2**-0.5])
    assert by_params["error_y"]["visible"]
    assert by_macs["x"] == pytest.approx([0.0, 0.32])
    assert by_time["x"] == pytest.approx(
        [1.0, 50 / 80]
    )  # of the unpruned network's time, in the order of what was removed
    assert by_time["y"] == pytest.approx([0.9, 0.65])
    fitted = next(t for t in traces if t["name"] == "cswap + lstsq")
    assert fitted["y"] == pytest.approx([0.9, 0.83])
    assert not fitted["visible"]
    other = next(t for t in traces if t["name"] == "random:layer")
    assert other["y"] == pytest.approx([0.9, 0.1])
    assert not other["error_y"]["visible"]
