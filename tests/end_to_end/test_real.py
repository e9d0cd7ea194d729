"""The shared real network on real images, where they are at hand."""

from __future__ import annotations

import contextlib
import io
import json
import re
import zipfile

import pytest
import torch

import cswap
from cswap.cli.app import main
from cswap.data.models import ModelSpec
from cswap.pipeline import DataChoice, Source
from cswap.report.page import write_report


@pytest.fixture(scope="module")
def pruned(shared, tmp_path_factory):
    """Artifact and summary of ResNet-18 less 2 %. Quality on 1,000 held-out images keeps this short; the benchmark runs all 10,000."""
    root = tmp_path_factory.mktemp("real")
    with zipfile.ZipFile(shared / "data" / "cifar10.zip") as archive:
        names = archive.namelist()
        wanted = [n for n in names if re.search(r"/test/[a-z]+/0[0-9]{3}\.jpg|/train/[a-z]+/00[0-4][0-9]\.jpg", n)]
        archive.extractall(root, wanted)
    out, said = root / "out", io.StringIO()
    with contextlib.redirect_stdout(said):
        status = main([
            "prune", "--model", f"{shared}/models/zoo.py:resnet18_cifar", "--weights",
            f"{shared}/models/resnet18_cifar10.safetensors", "--data", str(root / "cifar10"), "--image-size", "32",
            "--mean", "0.4914,0.4822,0.4465", "--std", "0.2470,0.2435,0.2616", "--per-class", "4", "--target", "params=0.02",
            "--eval-samples", "1000", "--out", str(out), "--quiet", "--json",
        ])  # fmt: skip
    assert status == 0
    return out, json.loads(said.getvalue())


@pytest.mark.slow
def test_resnet18_on_cifar10_two_per_cent(shared, pruned):
    out, summary = pruned
    stated = float(re.search(r"\| ([0-9.]+) % \|", (shared / "models" / "README.md").read_text())[1]) / 100
    noise = 4 * (stated * (1 - stated) / summary["held_out_samples"]) ** 0.5
    assert summary["baseline"]["quality"]["accuracy"] == pytest.approx(stated, abs=noise)
    assert summary["baseline"]["params"] == 11_173_962
    assert summary["baseline"]["macs"] == pytest.approx(0.555e9, rel=0.01)
    assert summary["ratio"]["params"] >= 0.02
    assert summary["pruned"]["params"] <= 0.98 * summary["baseline"]["params"]
    assert cswap.load(out, trust=True)(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


@pytest.fixture(scope="module")
def case(shared, tmp_path_factory):
    """The network, four images of every class, and its structure."""
    root = tmp_path_factory.mktemp("images")
    with zipfile.ZipFile(shared / "data" / "cifar10.zip") as archive:
        archive.extractall(root, [n for n in archive.namelist() if re.search(r"/train/[a-z]+/000[0-3]\.jpg", n)])
        archive.extractall(root, [n for n in archive.namelist() if re.search(r"/test/[a-z]+/000[0-3]\.jpg", n)])
    weights = shared / "models" / "resnet18_cifar10.safetensors"
    model = Source(ModelSpec.parse(f"{shared}/models/zoo.py:resnet18_cifar", {}), weights).build()
    form = {"image_size": 32, "mean": "0.4914,0.4822,0.4465", "std": "0.2470,0.2435,0.2616"}
    data = DataChoice(str(root / "cifar10"), per_class=4, **form).open(None)
    calibration = cswap.calibration_set(data.train, 4, classes=data.classes)
    return model, calibration, cswap.discover(model, calibration.inputs(0, 2))


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("method", ["magnitude", "random", "lamp", "taylor", "taylor2", "deeplift", "lrp"])
def test_rankings_of_resnet18_are_complete_and_the_same_again(case, method, scope):
    model, calibration, structure = case
    paths = [
        cswap.prune_path(model, calibration, structure=structure, method=method, scope=scope, seed=3) for _ in range(2)
    ]
    assert [(d.group, d.unit) for d in paths[0]] == [(d.group, d.unit) for d in paths[1]]
    assert len({(d.group, d.unit) for d in paths[0]}) == structure.units - len(structure.groups)
    kept, _, reached = paths[0].prefix("params=0.5")
    small = paths[0].apply(model, "params=0.5")
    left = sum(p.numel() for p in small.parameters()) / sum(p.numel() for p in model.parameters())
    assert left == pytest.approx(1 - reached.params, abs=1e-6)
    assert sum(len(u) for u in kept.values()) > 0


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(1440, "light"), (390, "dark"), (1440, "dark"), (390, "light")])
def test_its_report_in_a_browser(pruned, browser, width, scheme):
    """Click through it: a unit, a class, the curve, a sorted table, the walk; no console message, no request."""
    file = write_report(pruned[0])
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    said, asked = [], []
    page.on("console", lambda m: said.append(m.text))
    page.on("pageerror", lambda e: said.append(str(e)))
    page.on("request", lambda r: asked.append(r.url))
    page.goto(file.as_uri())
    page.wait_for_selector("html[data-ready]", state="attached")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    last = page.locator("#rows canvas").last  # the network's last group was tested; the first ones may not be
    last.scroll_into_view_if_needed()
    last.click(position={"x": 5, "y": 5})
    told = page.locator("#unit").inner_text()
    assert "layer4.1.conv1 · 0" in told
    for name in ("airplane", "truck"):
        assert name in told
    if width < 800:
        page.locator("#unit .close").click()
    page.locator("#classtable button.link", has_text="frog").click()
    assert "frog alone needs" in page.locator("#classunits").inner_text()
    page.locator("#kinds button").nth(1).click()
    assert "MACs removed" in page.locator("#plot").inner_text()
    page.locator("#grouptable th button").nth(1).click()
    assert page.locator("#grouptable th").nth(1).get_attribute("aria-sort") == "descending"
    page.locator("#wgone").check()
    assert set(page.locator("#walktable tbody tr td:nth-child(7)").all_inner_texts()) == {"yes"}
    assert said == []
    assert [u for u in asked if not u.startswith(("file:", "data:"))] == []
    page.close()
