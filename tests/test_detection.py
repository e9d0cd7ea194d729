"""Detection: scores against a plain twin, planted truth, VOC and COCO folders, mAP, torchvision's detectors, the commands."""

from __future__ import annotations

import contextlib
import json
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import cswap
from cswap.cli.app import app
from cswap.data.calibration import calibration_set
from cswap.data.sources import ImageFormat, open_data
from cswap.errors import DataError
from cswap.evaluate.quality import measure_quality
from cswap.pipeline import check_fits
from cswap.pipeline.checks import task_named
from cswap.structure.check import agreement, random_half, randomise_
from cswap.structure.detectors import forward_of
from cswap.tasks import Detection, SoftDetection
from cswap.types import Verdict

from . import dense_factory
from .conftest import off_by_one, saved_and_loaded_elsewhere
from .dense_factory import PlantedDetector, planted_boxes, small_ssd
from .reference import dense as reference

FACTORY = f"{dense_factory.__file__}:small_ssd"
NAMES = ["left", "right"]


def boxes_and_truth(seed: int):
    generator = torch.Generator().manual_seed(seed)

    def boxes(n: int) -> torch.Tensor:
        corner = 40 * torch.rand(n, 2, generator=generator)
        return torch.cat([corner, corner + 5 + 20 * torch.rand(n, 2, generator=generator)], 1)

    found = {
        "boxes": boxes(30), "scores": torch.rand(30, generator=generator),
        "labels": torch.randint(1, 4, (30,), generator=generator),
    }  # fmt: skip
    return found, {"boxes": boxes(6), "labels": torch.tensor([0, 2, 0, 1, 1, 2])}


def test_scores_are_those_of_the_plain_twin():
    cases = [boxes_and_truth(seed) for seed in range(3)]
    nothing = {k: v[:0] for k, v in cases[0][0].items()}
    cases.append((nothing, cases[0][1]))
    found, truth = [list(part) for part in zip(*cases, strict=True)]
    expected = [reference.best_boxes(f, t, 1) for f, t in cases]
    task = Detection()
    np.testing.assert_allclose(task.score(found, truth).numpy(), [np.mean(e) for e in expected], rtol=1e-6)
    columns = task.class_scores(found, truth).numpy()
    for row, e, t in zip(columns, expected, truth, strict=True):
        own = [np.mean([v for v, k in zip(e, t["labels"].tolist(), strict=True) if k == n]) for n in range(3)]
        np.testing.assert_allclose(row, own, rtol=1e-6)
    soft = SoftDetection().score(found, truth)
    assert (soft <= task.score(found, truth) + 1e-12).all()
    assert torch.equal(soft > 0, torch.tensor([True, True, True, False]))


def test_a_class_that_is_absent_has_no_score_and_an_image_without_boxes_scores_one():
    found, truth = boxes_and_truth(0)
    two = {"boxes": truth["boxes"][:1], "labels": torch.tensor([1])}
    none = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    columns = Detection().class_scores([found, found], [two, none])
    assert columns.isnan().tolist() == [[True, False], [True, True]]
    assert Detection().score([found], [none]).tolist() == [1.0]


def test_what_is_no_list_of_boxes_is_refused_and_masks_are_too():
    found, truth = boxes_and_truth(0)
    with pytest.raises(DataError, match="expects a list of dicts with boxes, scores and labels"):
        Detection().score(torch.zeros(1, 3), [truth])
    with pytest.raises(DataError, match="instance segmentation"):
        Detection().score([{**found, "masks": torch.zeros(30, 1, 8, 8)}], [truth])


@pytest.mark.parametrize("task", [Detection(), SoftDetection()])
def test_a_channel_that_finds_one_class_is_critical_for_it_alone(task):
    data = planted_boxes(36)
    calibration = calibration_set(data, 10, classes=NAMES)
    assert calibration.counts.min() >= 10
    path = cswap.prune_path(PlantedDetector(), calibration, task=task, target="noncritical")
    by_unit = {d.unit: d for d in path}
    needed = {n: [e.name for e in d.effects.values() if e.pi < 0] for n, d in by_unit.items()}
    assert needed == {0: ["left"], 1: ["right"], 2: [], 3: []}
    assert by_unit[2].verdict is Verdict.NEUTRAL
    assert by_unit[0].effects["left"].count == int(calibration.members[:, 0].sum())


def write_voc(root, count=12, size=64):
    rng = np.random.default_rng(0)
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / part).mkdir(parents=True)
    names = []
    for i in range(count):
        image, things = rng.integers(0, 40, (size, size, 3)).astype(np.uint8), []
        for j in range(2):
            side, x, y = (
                int(rng.integers(14, 26)),
                int(rng.integers(0, size // 2 - 26 + 1)) + 32 * j,
                int(rng.integers(0, 38)),
            )
            kind = int(rng.integers(2))
            image[y : y + side, x : x + side, kind] = 230
            things.append((NAMES[kind], x, y, x + side, y + side))
        Image.fromarray(image).save(root / "JPEGImages" / f"i{i}.jpg", quality=95)
        objects = "".join(
            f"<object><name>{n}</name><difficult>0</difficult><bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax>"
            f"<ymax>{d}</ymax></bndbox></object>"
            for n, a, b, c, d in things
        )
        hard = "<object><name>left</name><difficult>1</difficult><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>"
        (root / "Annotations" / f"i{i}.xml").write_text(f"<annotation>{objects}{hard if i == 0 else ''}</annotation>")
        names.append(f"i{i}")
    (root / "ImageSets/Main/train.txt").write_text("\n".join(names[: count - 4]))
    (root / "ImageSets/Main/test.txt").write_text("\n".join(names[count - 4 :]))


def test_voc_folders(tmp_path):
    write_voc(tmp_path)
    pair = open_data(str(tmp_path), ImageFormat())
    image, truth = pair.train[0]
    assert (pair.classes, len(pair.train), len(pair.evaluation)) == (("left", "right"), 8, 4)
    assert image.shape == (3, 64, 64)
    assert image.max() <= 1
    assert truth["boxes"].shape == (2, 4)  # the difficult one is left out
    small, scaled = open_data(str(tmp_path), ImageFormat(asked=32)).train[0]
    assert small.shape == (3, 32, 32)
    assert torch.allclose(scaled["boxes"], truth["boxes"] / 2)
    (tmp_path / "Annotations" / "i0.xml").write_text("<annotation>")
    with pytest.raises(DataError, match=r"i0\.xml: cannot be read"):
        open_data(str(tmp_path), ImageFormat())


def test_coco_folders(tmp_path):
    (tmp_path / "annotations").mkdir()
    for split in ("train2017", "val2017"):
        (tmp_path / split).mkdir()
        Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / split / "a.jpg")
        told = {
            "images": [{"id": 7, "file_name": "a.jpg"}],
            "categories": [{"id": 3, "name": "dog"}, {"id": 1, "name": "cat"}],
            "annotations": [
                {"image_id": 7, "category_id": 3, "bbox": [1, 2, 10, 5], "iscrowd": 0},
                {"image_id": 7, "category_id": 1, "bbox": [0, 0, 5, 5], "iscrowd": 1},
            ],
        }
        (tmp_path / "annotations" / f"instances_{split}.json").write_text(json.dumps(told))
    pair = open_data(str(tmp_path), ImageFormat())
    _, truth = pair.train[0]
    assert pair.classes == ("cat", "dog")
    assert truth["boxes"].tolist() == [[1, 2, 11, 7]]
    assert truth["labels"].tolist() == [1]
    task = task_named("detection", pair)
    perfect = [
        {"boxes": truth["boxes"], "scores": torch.ones(1), "labels": torch.tensor([3])}
    ]  # the category's own number
    dense = [{**perfect[0], "labels": torch.tensor([2])}]
    for named in (task, task_named("detection-soft", pair)):
        assert named.score(perfect, [truth]).item() == pytest.approx(1, abs=1e-6)
        assert named.sample_quality(perfect, [truth]).item() == 1
        assert named.score(dense, [truth]).item() == 0
    pytest.importorskip("pycocotools")
    for found, expected in ((perfect, 1.0), (dense, 0.0)):
        meter = task.meter(2)
        meter.update(found, [truth])
        assert meter.result()["by_class"] == [None, pytest.approx(expected)]


def test_map_by_torchmetrics():
    pytest.importorskip("torchmetrics")
    pytest.importorskip("pycocotools")
    data = planted_boxes(9)
    whole = measure_quality({"net": PlantedDetector()}, data, Detection(), 3, batch=4)["net"]
    assert whole["map"] == pytest.approx(1.0)
    assert whole["by_class"] == [pytest.approx(1.0), pytest.approx(1.0), None]
    broken = PlantedDetector()
    with torch.no_grad():
        broken.say.weight[1] = 0
    half = measure_quality({"net": broken}, data, Detection(), 2, batch=4)["net"]
    assert half["map50"] == pytest.approx(0.5)
    assert half["by_class"] == [pytest.approx(1.0), pytest.approx(0.0)]


def test_labels_of_other_data_are_refused():
    calibration = calibration_set(planted_boxes(12), 4, classes=NAMES)
    with pytest.raises(DataError, match="task segmentation: expected data with masks, got boxes"):
        check_fits(PlantedDetector(), calibration, cswap.Segmentation())


def test_a_detector_is_pruned_to_the_same_network_and_loads_in_a_new_process(tmp_path):
    net = randomise_(small_ssd(), seed=1).eval()
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    structure = cswap.discover(net, x)
    assert {g.name for g in structure} >= {"backbone.a.0", "backbone.b.0", "backbone.c.0"}
    removed = random_half(structure, 0)
    assert agreement(net, structure, removed, x).ok
    with contextlib.suppress(RuntimeError, IndexError):  # or it does not even run
        assert not agreement(net, off_by_one(structure), removed, x).ok
    small = saved_and_loaded_elsewhere(net, structure, removed, x, tmp_path, FACTORY)
    assert [t.shape for t in forward_of(small)(x)] == [t.shape for t in forward_of(net)(x)]


def trained(data):
    torch.manual_seed(0)
    net = small_ssd()
    optimiser = torch.optim.Adam(net.parameters(), 0.01)
    x = [data[i][0] for i in range(len(data))]
    y = [{**data[i][1], "labels": data[i][1]["labels"] + 1} for i in range(len(data))]
    for _ in range(80):
        optimiser.zero_grad()
        sum(net(x, y).values()).backward()
        optimiser.step()
    return net.eval()


def run(*args):
    result = CliRunner().invoke(app, [str(a) for a in args])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_the_commands_prune_compare_apply_eval_and_explain_a_detector(tmp_path):
    pytest.importorskip("torchmetrics")
    pytest.importorskip("pycocotools")
    from safetensors.torch import save_file

    write_voc(tmp_path / "data", count=20)
    net = trained(open_data(str(tmp_path / "data"), ImageFormat()).train)
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    common = [
        "--model", FACTORY, "--weights", tmp_path / "net.safetensors", "--data", tmp_path / "data", "--task", "detection",
        "--per-class", 6, "--quiet", "--json",
    ]  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = run("prune", *common, "--target", "units=0.2", "--out", tmp_path / "a", "--recover", "bn")
    assert made["baseline"]["quality"]["map50"] > 0.3
    assert len(made["pruned"]["quality"]["by_class"]) == 2
    assert made["engine"].startswith("plain")
    again = run("eval", tmp_path / "a", "--trust", "--quiet", "--json")
    assert again["pruned"]["quality"] == made["pruned"]["quality"]
    run("apply", tmp_path / "a", "--target", "units=0.1", "--out", tmp_path / "b", "--trust", "--quiet", "--json")
    told = run("explain", tmp_path / "a", "--class", "left", "--json")
    assert all("left" in u["needed_by"] + u["hurts"] for u in told["units"])
    sheet, unit = tmp_path / "unit.png", run("explain", tmp_path / "a", "--json")["units"][0]
    run(
        "explain",
        tmp_path / "a",
        "--group",
        unit["group"],
        "--unit",
        unit["unit"],
        "--images",
        sheet,
        "--trust",
        "--json",
    )
    with Image.open(sheet) as seen:  # the background is dark in the files, and detectors get images as they are
        assert np.percentile(np.asarray(seen.crop((0, 0, 96, 96))), 10) < 40
    both = run(
        "compare", *common, "--methods", "cbp,magnitude,taylor,obs", "--ratios", "0,0.4", "--ratio-in", "units",
        "--recover", "none,lstsq", "--no-latency", "--out", tmp_path / "all",
    )  # fmt: skip
    assert both["headline"] == "map"
    assert set(both["methods"]) == {"cbp", "magnitude", "taylor", "obs"}
