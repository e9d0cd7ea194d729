"""The report: what it says, that the command in it makes the artifact again, that hostile names are harmless, and a browser."""

from __future__ import annotations

import base64
import dataclasses
import itertools
import json
import re

import numpy as np
import pytest
import typer

from cswap.artifacts.folder import open_artifact
from cswap.cli.app import main
from cswap.data.models import ModelSpec, parse_arguments
from cswap.pipeline import Source
from cswap.report.again import _DATA, _WISH, arguments_of
from cswap.report.explain import explanation
from cswap.report.facts import facts_of
from cswap.report.page import page_of, write_report

HOSTILE = "<script>alert(1)</script>"


@pytest.fixture
def artifact(place):
    """A whole artifact of a path with removals, its hidden units judged by three classes."""
    assert main(place.prune("out", "--recover", "bn", target="units=0.5")) == 0
    return open_artifact(place.root / "out")


def embedded(html: str) -> dict:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.S)
    assert found is not None
    return json.loads(found[1])


def test_the_facts_are_those_of_the_artifact(artifact):
    facts = facts_of(artifact)
    rows = {g["name"]: g for g in facts["groups"]}
    assert [g["name"] for g in facts["groups"]] == [g.name for g in reversed(artifact.structure.groups)]
    gone = {(d.group, d.unit) for d in artifact.path if d.removed}
    assert gone
    for d in artifact.path:
        g = rows[d.group]
        assert g["gone"][d.unit] == ((d.group, d.unit) in gone)
        mean = np.frombuffer(base64.b64decode(g["effects"][0]), "<f4").reshape(g["size"], 3)
        p = np.frombuffer(base64.b64decode(g["effects"][1]), "<f4").reshape(g["size"], 3)
        if d.phase == "walk":
            assert g["verdict"][d.unit] == str(d.verdict)[0]
            np.testing.assert_allclose(mean[d.unit], d.effects.mean, rtol=1e-6, atol=1e-12)
            np.testing.assert_allclose(p[d.unit], d.effects.p, rtol=1e-6, atol=1e-36)
            signs = g["signs"][3 * d.unit : 3 * d.unit + 3]
            assert ["-0+".index(s) - 1 for s in signs] == d.effects.pi.tolist()
    summary = artifact.summary
    shown = {r["name"]: (r["before"], r["after"]) for r in facts["figures"]}
    assert shown["parameters"] == (summary["baseline"]["params"], summary["pruned"]["params"])
    assert shown["accuracy"] == tuple(summary[n]["quality"]["accuracy"] for n in ("baseline", "pruned"))
    assert facts["curve"]["macs"]["chosen"] == [summary["ratio"]["macs"], shown["accuracy"][1]]
    alone = {c["name"]: {tuple(u[:2]) for u in c["alone_units"]} for c in facts["by_class"]}
    latest = {(d.group, d.unit): d.effects for d in artifact.path if d.effects is not None}
    for name, units in alone.items():
        wanted = {u for u, e in latest.items() if [c for c, one in e.items() if one.pi < 0] == [name]}
        assert units == wanted


def test_an_artifact_that_ends_before_its_path_shows_what_it_lacks(place, artifact, capsys):
    assert main(["apply", str(artifact.folder), "--target", "units=0.2", "--out", str(place.root / "less"), "--trust", "--quiet"]) == 0  # fmt: skip
    less = open_artifact(place.root / "less")
    facts = facts_of(less)
    removed = sum(sum(g["gone"]) for g in facts["groups"])
    assert removed == facts["units_gone"] == round(less.manifest["ratio"]["units"] * less.structure.units)
    assert removed < sum(sum(g["gone"]) for g in facts_of(artifact)["groups"])
    capsys.readouterr()
    assert main(["explain", str(less.folder), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert sum(u["removed"] for u in told["units"]) == removed


def test_what_joint_cuts_left_behind_is_shown_and_goes_on(place, capsys):
    """Quality lost against how much of each group went; an artifact made from the first has it too."""
    asked = ("--method", "joint", "--margins", "0.2,0.9", "--recover", "lstsq")
    assert main(place.prune("out", *asked, target="units=0.2")) == 0
    assert (
        main(["apply", str(place.root / "out"), "--target", "units=0.1", "--out", str(place.root / "b"), "--trust"])
        == 0
    )
    for folder in ("out", "b"):
        artifact = open_artifact(place.root / folder)
        held = artifact.manifest["sensitivity"]["groups"]
        told = facts_of(artifact)["sensitivity"]
        assert told["margins"] == [0.2, 0.9]
        assert {g["name"] for g in told["groups"]} == set(held) != set()
        for g in told["groups"]:
            probes = sorted(held[g["name"]]["probes"], key=lambda p: p["ratio"])
            assert [x for x, _, _, _ in g["points"]] == [0.0, *(p["ratio"] for p in probes)]
            for (_, loss, name, _), probe in zip(g["points"][1:], probes, strict=True):
                assert loss == max(probe["by_class"]) == probe["by_class"][artifact.path.classes.index(name)]
        html = write_report(place.root / folder, force=True).read_text()
        assert html.count("<polyline") == len(held)
        name, group = next(iter(held.items()))
        for place_, unit in enumerate(group["order"], 1):
            story = explanation(artifact.path, name, unit)["units"]
            above = [p for p in group["probes"] if p["units"] >= place_]
            if story and above:
                probe = min(above, key=lambda p: p["units"])
                assert story[0]["probe"]["units"] == probe["units"]
                assert list(story[0]["probe"]["by_class"].values()) == probe["by_class"]
        first = group["order"][0]
        capsys.readouterr()
        assert main(["explain", str(place.root / folder), "--group", name, "--unit", str(first)]) == 0
        assert "mean loss of score" in capsys.readouterr().out
    plain = place.prune("plain", target="units=0.1")
    assert main(plain) == 0
    assert all(u["probe"] is None for u in explanation(open_artifact(place.root / "plain").path)["units"])
    assert facts_of(open_artifact(place.root / "plain"))["sensitivity"] is None
    assert "<polyline" not in write_report(place.root / "plain", force=True).read_text()


def test_units_that_rounding_keeps_are_told_as_kept(place, capsys):
    assert main(place.prune("round", "--round-to", "4", target="params=0.45")) == 0
    artifact = open_artifact(place.root / "round")
    shown = {(g["name"], u) for g in facts_of(artifact)["groups"] for u, gone in enumerate(g["gone"]) if gone}
    widths = {g.name: g.size - sum(n == g.name for n, _ in shown) for g in artifact.structure}
    assert shown
    assert all(w % 4 == 0 or w == artifact.structure[n].size for n, w in widths.items())
    capsys.readouterr()
    assert main(["explain", str(artifact.folder), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {(u["group"], u["unit"]) for u in told["units"] if u["removed"]} == shown
    assert "--round-to 4" in facts_of(artifact)["again"]["command"]
    parted = [u for u in told["units"] if u["removed_later"] is not None]
    assert {u["removed_later"] <= told["steps"] for u in parted} == {True, False}
    for u in parted:
        assert main(["explain", str(artifact.folder), "--group", u["group"], "--unit", str(u["unit"])]) == 0
        said = " ".join(capsys.readouterr().out.split())
        why = (
            "it stays here for the width of its layer"
            if u["removed_later"] <= told["steps"]
            else "this network does not"
        )
        assert f"the path removes it at step {u['removed_later']}, and {why}" in said
        assert said.count(f"at step {u['removed_later']}") == 1


def test_the_command_in_the_report_makes_the_same_path_again(place, artifact):
    words = arguments_of(artifact.manifest)
    assert words is not None
    assert main([*words, "--out", str(place.root / "again"), "--quiet"]) == 0
    again = place.root / "again"
    assert (again / "path.jsonl").read_bytes() == (artifact.folder / "path.jsonl").read_bytes()
    assert open_artifact(again).manifest["weights"] == artifact.manifest["weights"]


def test_every_choice_of_data_and_every_option_can_be_said_again():
    from cswap.cli.app import app
    from cswap.methods.options import Options
    from cswap.pipeline import DataChoice
    from cswap.pipeline.jobs import Wish

    prune = typer.main.get_command(app).commands["prune"]
    known = {o for p in prune.params for o in p.opts}
    said = {"text", "allow_imbalance", "unlabelled", *_DATA}
    assert {f.name for f in dataclasses.fields(DataChoice)} == said
    assert {f.name for f in dataclasses.fields(Wish)} == {"smaller", *_WISH}  # which --target says, beside the largest
    assert {*_DATA.values(), *_WISH.values()} <= known
    unsaid: set[str] = set()
    assert {"--" + f.name.replace("_", "-") for f in dataclasses.fields(Options) if f.name not in unsaid} <= known


def test_arguments_and_files_are_said_as_they_are_read_back(artifact, place, monkeypatch):
    given = {"flip": False, "size": 3, "name": "true", "width": 0.5, "plain": "abc", "none": None, "many": [1, 2]}
    words = arguments_of(artifact.manifest | {"source": artifact.manifest["source"] | {"arguments": given}})
    pairs = [b for a, b in itertools.pairwise(words) if a == "--model-arg"]
    assert parse_arguments(pairs) == given
    monkeypatch.chdir(place.root)
    spec = ModelSpec.parse(f"{place.factory.name}:colours")
    assert Source(spec).as_dict()["spec"] == f"{place.factory.resolve()}:colours"


def test_what_was_wished_is_said_again(artifact):
    from cswap.cli.app import app

    given = {
        "recover": "bn",
        "recover_per_class": 20,
        "round_to": 4,
        "latency_batch": 3,
        "certify": "DATA",
        "margin": 0.3,
        "bound": "bernstein",
    }
    manifest = artifact.manifest | {"round_to": 4, "certificate": {"margin": 0.3, "bound": "bernstein"}}
    manifest["recovery"] |= {"per_class": 20}
    words = arguments_of(manifest, "latency=0.4", {"aim": {"batch": 3}})
    assert words is not None
    told = typer.main.get_command(app).commands["prune"].make_context("prune", [*words[1:], "--out", "DIR"]).params
    assert {n: told[n] for n in given} == given
    assert told["target"] == "latency=0.4"
    plain = arguments_of(artifact.manifest | {"recovery": None})
    assert plain is not None
    assert not set(plain) & set(_WISH.values())


def test_a_class_called_script_stays_text(artifact):
    facts = facts_of(artifact)
    facts["classes"][0] = facts["by_class"][0]["name"] = facts["name"] = HOSTILE
    facts["left_out"] = [{"name": HOSTILE, "size": 3, "reason": f'{HOSTILE}" onload="alert(1)', "layers": [HOSTILE]}]
    html = page_of(facts)
    assert "<script>alert" not in html
    assert html.count("<script") == html.count("</script>") == 2
    assert embedded(html)["classes"][0] == HOSTILE
    assert "default-src 'none'" in html
    assert not re.search(r"""(?:src|href)=["'](?!#|data:)""", html)


def test_report_is_written_into_the_artifact_and_goes_with_it(place, artifact, capsys):
    assert main(["report", str(artifact.folder), "--json"]) == 0
    file = artifact.folder / "report.html"
    assert json.loads(capsys.readouterr().out) == {"report": str(file)}
    assert embedded(file.read_text())["units_total"] == 18
    assert main(["prune", "--force", *place.prune("out", target="units=0.2")[1:]]) == 0
    assert not file.exists(), "the report of another network must not stay behind"
    assert main(["report", str(place.root)]) == 2
    assert "expected manifest.json" in capsys.readouterr().err


def test_many_classes_carry_the_most_telling_ones(artifact, monkeypatch):
    whole = facts_of(artifact)["groups"][0]
    monkeypatch.setattr("cswap.report.facts._ALL_CLASSES", 2)
    row = facts_of(artifact)["groups"][0]
    assert row["effects"] is None
    for u, told in enumerate(row["telling"]):
        for k, _mean, _p, pi in told:
            assert "-0+".index(whole["signs"][3 * u + k]) - 1 == pi
        assert len(told) == 3


def large(facts: dict, units: int) -> dict:
    """The same facts with one more group of many units."""
    row = dict(next(g for g in facts["groups"] if g["size"] == 12))
    times = units // 12
    for key in ("gone", "verdict", "xi", "test", "end", "needs", "hurts", "edge"):
        row[key] = row[key] * times
    row |= {"name": "wide", "size": 12 * times, "signs": row["signs"] * times}
    row["effects"] = [base64.b64encode(base64.b64decode(e) * times).decode() for e in row["effects"]]
    return facts | {"groups": [row, *facts["groups"]], "walk": facts["walk"] * (units // len(facts["walk"]) + 1)}


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(1440, "light"), (390, "dark"), (1440, "dark"), (390, "light")])
def test_clicking_through_in_a_browser(artifact, browser, tmp_path, width, scheme):
    facts = large(facts_of(artifact), 6000)
    facts["classes"][0] = facts["by_class"][0]["name"] = HOSTILE
    file = tmp_path / "report.html"
    file.write_text(page_of(facts | {"images": None}), encoding="utf-8")
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    said, asked = [], []
    page.on("console", lambda m: said.append(m.text))
    page.on("pageerror", lambda e: said.append(str(e)))
    page.on("dialog", lambda d: (said.append(d.message), d.dismiss()))
    page.on("request", lambda r: asked.append(r.url))
    took = []
    for _ in range(3):  # the best of three: other work on this machine is not the page's
        page.goto(file.as_uri())
        page.wait_for_selector("html[data-ready]", state="attached")
        took.append(float(page.evaluate("document.documentElement.dataset.ready")))
    assert min(took) < 2000, "6,000 units take more than two seconds to render"
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "the page must not scroll sideways"
    canvas = page.locator("#rows canvas").first
    canvas.scroll_into_view_if_needed()
    if width >= 800:  # a narrow page shows a unit when it is tapped
        for u in (0, 1):
            canvas.hover(position={"x": 5 + 15 * u, "y": 5})
            assert f"wide · {u}" in page.locator("#unit").inner_text()
            bars = page.locator("#unit .effect")
            assert sorted(bars.locator("span:first-child").all_inner_texts()) == sorted(facts["classes"])
            effects = np.frombuffer(base64.b64decode(facts["groups"][0]["effects"][0]), "<f4").reshape(-1, 3)[u]
            told = {b.get_attribute("title").partition(":")[0]: b.get_attribute("title") for b in bars.all()}
            for name, mean in zip(facts["classes"], effects, strict=True):
                found = re.search(r"mean difference ([+−]?)([\d.]+)", told[name])
                assert found is not None
                assert float(found[1].replace("−", "-") + found[2]) == pytest.approx(float(mean), abs=1e-5)
    canvas.click(position={"x": 20, "y": 5})
    assert "wide · 1" in page.locator("#unit").inner_text()
    page.keyboard.press("ArrowRight")
    assert "wide · 2" in page.locator("#unit").inner_text()
    assert HOSTILE in page.locator("#unit").inner_text()
    if width < 800:
        page.locator("#unit .close").click()
        assert not page.locator("#unit").is_visible()
    page.locator("#classtable button.link").first.click()
    assert f"Units that {HOSTILE} alone needs" in page.locator("#classunits").inner_text()
    assert page.locator("#colour").input_value() == "0"
    page.locator("#kinds button").nth(1).click()
    assert "MACs removed" in page.locator("#plot").inner_text()
    first = page.locator("#grouptable tbody tr").first.inner_text()
    page.locator("#grouptable th button").nth(1).click()
    assert page.locator("#grouptable th").nth(1).get_attribute("aria-sort") == "descending"
    assert page.locator("#grouptable tbody tr").first.inner_text().startswith("wide")
    page.locator("#grouptable th button").nth(1).click()
    assert page.locator("#grouptable th").nth(1).get_attribute("aria-sort") == "ascending"
    assert first
    page.locator("#wgone").check()
    assert set(page.locator("#walktable tbody tr td:nth-child(7)").all_inner_texts()) == {"yes"}
    page.locator("#wpages button").last.click()
    assert page.locator("#wpages").inner_text().startswith("‹ earlier 26–")
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    for _ in range(2):
        page.locator("#theme").click()
    assert (page.evaluate("getComputedStyle(document.body).backgroundColor") != colour) == (scheme == "light")
    assert said == []
    assert [u for u in asked if not u.startswith(("file:", "data:"))] == []
    page.close()


def test_write_report_says_where(artifact, tmp_path):
    file = write_report(artifact.folder, tmp_path / "r.html")
    assert embedded(file.read_text())["method"] == "cswap"
