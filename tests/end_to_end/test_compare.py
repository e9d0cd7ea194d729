"""`cswap compare`: table, JSON and page, what they do not show, and what is refused at once."""

from __future__ import annotations

import json

import pytest

import cswap
from cswap.cli.app import main
from cswap.data.models import ModelSpec
from cswap.errors import InputError
from cswap.evaluate.curve import sauce
from cswap.methods.options import Options
from cswap.pipeline import DataChoice, Source
from tests.end_to_end.commands import compare_of

METHODS = "cswap,cbp,greedy,magnitude,magnitude:global,random"


def test_every_method_on_one_curve(place, capsys):
    status = main(
        compare_of(
            place,
            "--methods",
            METHODS,
            "--ratios",
            "0,0.2,0.5,0.8",
            "--seeds",
            "0,1",
            "--recover",
            "bn,lstsq",
            "--json",
        )
    )
    out, err = capsys.readouterr()
    assert status == 0, err
    result = json.loads(out)
    assert result == json.loads((place.root / "c" / "compare.json").read_text())
    assert list(result["methods"]) == METHODS.split(",")
    for name, method in result["methods"].items():
        assert list(method["by_seed"]) == ["0", "1"]
        for run in method["by_seed"].values():
            points = run["points"]
            assert points[0]["quality"] == result["unpruned"]["quality"]
            for kind in ("params", "macs", "units"):
                asked = [(p["asked"][kind], p["ratio"][kind]) for p in points if kind in p["asked"]]
                most = points[-1]["ratio"][kind] if kind == "units" else 0.8
                assert [a for a, _ in asked] == [a for a in (0, 0.2, 0.5, 0.8) if a <= most], name
                assert all(r >= a - 1e-9 for a, r in asked)
            assert all(len(p["quality"]["by_class"]) == 3 and p["latency_ms"]["64"] > 0 for p in points)
            curve = [(p["ratio"]["params"], p["quality"]["accuracy"]) for p in points if "params" in p["asked"]]
            expected = sauce([x for x, _ in curve], [y for _, y in curve], points[0]["quality"]["accuracy"])
            assert run["sauce"]["none"] == pytest.approx(expected)
            assert set(run["sauce"]) == {"none", "bn", "lstsq"}
            assert all(0 <= p["recovered"]["lstsq"]["p_worse"] <= 1 for p in points)
            assert points[0]["recovered"]["lstsq"]["quality"] == points[0]["quality"]  # nothing was removed
            assert run["seconds"] > 0
        rows = method["curves"]["params"]
        assert [r["seeds"] for r in rows] == [2] * len(rows)
        assert rows[0]["quality"]["none"]["std"] == 0
    params = [p["params"] for p in result["methods"]["cswap"]["by_seed"]["0"]["points"]]
    assert params == sorted(params, reverse=True)
    page = (place.root / "c" / "compare.html").read_text()
    assert "cbp" in page
    assert "https://" not in page.split("<body>")[0]


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_method_that_cannot_say_anything_is_left_out_with_its_reason(place, capsys, jobs):
    pytest.importorskip("zennit", reason="zennit is not installed")
    wavy = place.root / "wavy.py"
    wavy.write_text(
        "import torch\nfrom torch import nn\n\n\nclass Wavy(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        torch.manual_seed(0)\n        self.a, self.b = nn.Linear(192, 12), nn.Linear(12, 3)\n"
        "        for n in range(3):  # three units say how much there is of each colour\n            self.a.weight.data[n] = 0\n"
        "            self.a.weight.data[n, 64 * n : 64 * n + 64] = 1 / 64\n            self.b.weight.data[n, n] = 5\n\n"
        "    def forward(self, x):\n        return self.b(torch.sin(self.a(x.flatten(1))))\n"
    )
    asked = compare_of(place, "--ratios", "0,0.5", "--ratio-in", "units", "--no-latency", "--jobs", jobs)
    asked[asked.index("--model") + 1] = f"{wavy}:Wavy"
    asked[asked.index("--weights") : asked.index("--weights") + 2] = []
    assert main([*asked, "--methods", "magnitude,lrp,random"]) == 0
    out = capsys.readouterr().out
    assert "lrp is left out: method lrp: no rule hands" in " ".join(out.split())
    result = json.loads((place.root / "c" / "compare.json").read_text())
    assert list(result["methods"]) == ["magnitude", "random"]
    assert list(result["refused"]) == ["lrp"]
    assert "sin" in result["refused"]["lrp"]
    assert "left out" in (place.root / "c" / "compare.html").read_text()
    assert main([*asked, "--methods", "magnitude,lrp", "--resume"]) == 0
    capsys.readouterr()
    assert main([*asked, "--methods", "lrp", "--force"]) == 2  # nothing is left to compare
    assert "no rule hands" in capsys.readouterr().err


def test_a_step_that_answers_two_ratios_is_a_point_of_each(place, capsys):
    """Two units of a small network are far apart: no ratio may be lost between them."""
    ratios = [0.0, 0.3, 0.31, 0.32, 0.33, 0.34, 0.35]
    asked = [
        "--methods",
        "random",
        "--ratios",
        ",".join(map(str, ratios)),
        "--ratio-in",
        "units",
        "--no-latency",
        "--json",
    ]
    assert main(compare_of(place, *asked)) == 0
    result = json.loads(capsys.readouterr().out)["methods"]["random"]
    points = result["by_seed"]["0"]["points"]
    assert [p["asked"]["units"] for p in points] == ratios
    assert len({p["steps"] for p in points}) < len(ratios)
    assert [r["asked"] for r in result["curves"]["units"]] == ratios


def test_a_method_gets_the_options_it_reads_and_what_cannot_be_asked_is_refused_at_once(place):
    def job(*methods: str, **options: object) -> cswap.CompareJob:
        source = Source(ModelSpec.parse(f"{place.factory}:colours"))
        return cswap.CompareJob(source, DataChoice("x"), place.root / "out", methods, options=Options(**options))

    looks = job("cswap", "cbp", "magnitude", effects="sequential", order="reverse")
    settings = {n: looks.settings(n, 3)[1] for n in looks.methods}
    assert {n: (o.effects, o.order, o.seed) for n, o in settings.items()} == {
        "cswap": ("sequential", "reverse", 3), "cbp": ("full", "index", 3), "magnitude": ("full", "index", 3),
    }  # fmt: skip
    assert settings["cbp"].rule.alpha == 0.05 > settings["cswap"].rule.alpha
    for name in ("taylor:raw:params", "taylor:layer:macs"):
        with pytest.raises(InputError, match="goes with --scope global"):
            job("cswap", name)
    with pytest.raises(InputError, match="per: params goes with --scope global, got --scope layer"):
        job("cswap", "taylor", per="params")
    assert job("cswap", "taylor:global", per="params").settings("taylor:global", 0)[1].per == "params"


def test_joint_that_is_not_refitted_is_told_to_be_another_network_than_was_tested(place, capsys):
    asked = ["--methods", "joint,random", "--ratios", "0,0.2", "--ratio-in", "params", "--no-latency"]
    said = "joint: joint tested its sets with the layers behind them compensated"
    assert main(compare_of(place, *asked)) == 0
    assert said in " ".join(capsys.readouterr().out.split())
    assert main(compare_of(place, *asked, "--recover", "lstsq", "--resume")) == 0
    assert said not in " ".join(capsys.readouterr().out.split())


def test_what_a_table_does_not_show_is_said_below_it(place, capsys):
    """Ratios that no prefix reaches, and recoveries that are declined."""
    asked = [
        "--methods",
        "magnitude",
        "--ratios",
        "0,0.2,0.99",
        "--ratio-in",
        "params",
        "--recover",
        "bn",
        "--no-latency",
    ]
    assert main(compare_of(place, *asked)) == 0
    said = " ".join(capsys.readouterr().out.split())
    result = json.loads((place.root / "c" / "compare.json").read_text())
    (run,) = result["methods"]["magnitude"]["by_seed"].values()
    (note,) = (n for n in run["notes"] if "beyond" in n)
    assert note.startswith("params=0.99 lies beyond the end of the path, params=0.")
    assert f"magnitude: {note}" in said
    assert note in (place.root / "c" / "compare.html").read_text()
    rows = {r["asked"]: r for r in result["methods"]["magnitude"]["curves"]["params"]}
    declined = {p["asked"]["params"] for p in run["points"] if p["recovered"]["bn"]["declined"]}
    assert {r for r, row in rows.items() if row["declined"]} == declined
    assert ("°" in said) == bool(declined)
