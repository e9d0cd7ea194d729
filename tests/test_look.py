"""Images that activate a unit most, and a comparison's page without latency."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

import cswap
from cswap.data.sources import ImageFormat
from cswap.errors import InputError
from cswap.report.activations import Gallery, most_active, pixels
from cswap.report.figures import compare_page
from cswap.structure.check import randomise_
from tests.conftest import ResidualNet

FORM = ImageFormat(8, 8, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.fixture
def case():
    net = randomise_(ResidualNet(), seed=3).eval()
    x = torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    data = torch.utils.data.TensorDataset(x, torch.arange(12) % 4)
    calibration = cswap.calibration_set(data, 3)
    return net, calibration, cswap.discover(net, calibration.inputs(0, 2))


def test_most_active_is_what_a_plain_loop_finds(case):
    net, calibration, structure = case
    found = most_active(net, structure, calibration, most=5)
    assert set(found) == {g.name for g in structure}
    x = calibration.inputs(0, 12)
    inner = torch.relu(net.a(torch.relu(net.bn(net.conv(x)))))  # what `b` reads
    highest = inner.flatten(2).amax(2).detach().double().numpy()
    for n in range(5):
        order = np.argsort(-highest[:, n], kind="stable")[:5]
        assert found["a"].samples[n].tolist() == order.tolist()
        np.testing.assert_allclose(found["a"].values[n], highest[order, n])
    with pytest.raises(InputError, match="at least 1"):
        most_active(net, structure, calibration, most=0)


def test_sheet_and_sprite_show_those_samples(case, tmp_path):
    net, calibration, structure = case
    seen = Gallery(most_active(net, structure, calibration, most=4, groups=["a"]), calibration, FORM)
    told = seen.sheet("a", 2, tmp_path / "a2.png")
    with Image.open(tmp_path / "a2.png") as written:
        sheet = np.asarray(written)
    picture = pixels(calibration.of(seen.active["a"].samples[2]), FORM)[0]
    np.testing.assert_array_equal(sheet[6, 6], picture[0, 0])
    assert [t["activation"] for t in told] == sorted((t["activation"] for t in told), reverse=True)
    sprite = seen.sprite()
    for unit, row in enumerate(sprite["units"]["a"]):
        assert [r[1] for r in row] == calibration.targets[seen.active["a"].samples[unit]].tolist()
    assert sprite["columns"] * sprite["rows"] >= 1 + max(r[0] for row in sprite["units"]["a"] for r in row)


def test_what_is_no_image_is_refused():
    with pytest.raises(InputError, match="expected image inputs"):
        pixels(torch.zeros(2, 2, 7, dtype=torch.long), FORM)
    grey = pixels(torch.linspace(-3, 7, 16).view(1, 1, 4, 4), FORM)
    assert (grey.min(), grey.max()) == (0, 255)


def test_images_that_were_not_normalised_are_shown_as_they_are():
    x = torch.linspace(0, 1, 48).view(1, 3, 4, 4)
    expected = (x[0] * 255).round().permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(pixels(x, FORM, normalised=False)[0], expected)
    assert (pixels(x, FORM)[0] != expected).any()


@pytest.mark.parametrize("timed", [True, False])
def test_no_empty_panel_where_nothing_was_timed(tmp_path, timed):
    row = {"quality": {"none": {"mean": 0.9, "std": None}}, "params": {"mean": 0.1, "std": None}}
    row |= {"ms_64": {"mean": 3.0, "std": None}} if timed else {}
    runs = {"0": {"points": [{"latency_ms": {"64": 4.0}}] if timed else [{}]}}
    method = {"curves": {"params": [row]}, "by_seed": runs}
    result = {"headline": "accuracy", "recover": ["none"], "methods": {"cswap": method}, "refused": {}}
    compare_page(result, tmp_path / "c.html", title="t")
    page = (tmp_path / "c.html").read_text(encoding="utf-8")
    titles = set(re.findall(r'"text":\s*"(against [^"]+)"', page))
    assert titles == {"against parameters removed"} | ({"against latency, batch 64"} if timed else set())


def test_commands_write_images(tmp_path, capsys, digits_case):
    from safetensors.torch import save_model

    from cswap.cli.app import main

    model, calibration, structure = digits_case
    path = cswap.prune_path(model, calibration, method="magnitude", target="params=0.3", structure=structure)
    small = path.apply(model, "params=0.3")
    cswap.save(small, tmp_path / "a", path=path, factory="cswap.demo:digits_resnet")
    save_model(model, str(tmp_path / "w.safetensors"))
    more = ["--data", "cswap.demo:digits", "--model", "cswap.demo:digits_resnet", "--weights", str(tmp_path / "w.safetensors")]  # fmt: skip
    group = structure.groups[0].name
    png = tmp_path / "u.png"
    assert main(["explain", str(tmp_path / "a"), "--group", group, "--unit", "3", "--images", str(png), *more, "--json"]) == 0  # fmt: skip
    assert len(json.loads(capsys.readouterr().out)["images"]["samples"]) == 6
    with Image.open(png) as sheet:
        assert sheet.size == (596, 96)
    assert main(["report", str(tmp_path / "a"), "--images", "3", *more]) == 0
    assert "data:image/webp" in (tmp_path / "a" / "report.html").read_text()
    assert main(["explain", str(tmp_path / "a"), "--images", str(png), *more]) == 2
    assert "--images needs --group and --unit" in capsys.readouterr().err
