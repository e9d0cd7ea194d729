"""Segmentation: scores against plain twins, planted truth, data of masks, quality, and the commands."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import cswap
from cswap.cli.app import app
from cswap.data.calibration import calibration_set
from cswap.data.masks import open_masks
from cswap.data.sources import ImageFormat, open_data
from cswap.errors import DataError, RunError
from cswap.evaluate.certificate import class_losses
from cswap.evaluate.quality import measure_quality
from cswap.pipeline import check_fits
from cswap.tasks import Classification, Segmentation, SoftSegmentation
from cswap.tasks.base import completed
from cswap.types import Verdict

from . import dense_factory
from .dense_factory import PlantedSegmenter, planted_masks
from .reference import dense as reference

FACTORY = f"{dense_factory.__file__}:small_unet"


def case(n: int = 5, k: int = 4):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(n, k, 6, 7, generator=generator)
    masks = torch.randint(0, k - 1, (n, 6, 7), generator=generator)
    masks[:, 0, :3], masks[:, 1, 0] = 255, -1
    return logits, masks


@pytest.mark.parametrize(
    ("task", "twin"), [(Segmentation(), reference.hard_iou), (SoftSegmentation(), reference.soft_iou)]
)
def test_class_scores_are_those_of_the_plain_twin(task, twin):
    logits, masks = case()
    expected = np.array([twin(a.numpy(), b.numpy()) for a, b in zip(logits, masks, strict=True)])
    found = task.class_scores({"out": logits}, masks).numpy()
    assert np.isnan(expected[:, 3]).all()
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(task.score(logits, masks).numpy(), np.nanmean(expected, 1), rtol=1e-6)


def test_logits_of_another_size_are_resized_and_of_another_kind_refused():
    logits, masks = case()
    assert Segmentation().score(logits[..., ::2, ::2], masks).shape == (5,)
    with pytest.raises(DataError, match=r"logits of shape \(N, K, H, W\)"):
        Segmentation().score(torch.zeros(5, 4), masks)


def test_the_surrogate_has_a_gradient_where_the_score_has_none():
    logits, masks = case()
    logits.requires_grad_()
    assert not Segmentation().score(logits, masks).requires_grad
    Segmentation().surrogate(logits, masks).sum().backward()
    assert logits.grad.abs().max() > 0


def test_an_image_without_labels_scores_one():
    logits, masks = case()
    assert Segmentation().score(logits, torch.full_like(masks, 255)).tolist() == [1.0] * 5


@pytest.mark.parametrize("task", [Segmentation(), SoftSegmentation()])
def test_a_channel_that_one_class_needs_is_critical_for_it_alone(task):
    calibration = calibration_set(planted_masks(48), 12, classes=["none", "a", "b", "rest"])
    assert calibration.counts.min() >= 12
    path = cswap.prune_path(PlantedSegmenter(), calibration, task=task, target="noncritical")
    by_unit = {d.unit: d for d in path}
    assert by_unit[1].verdict is Verdict.CRITICAL
    needed = {n: [e.name for e in by_unit[n].effects.values() if e.pi < 0] for n in by_unit}
    assert needed[1] == ["a"]
    assert needed[2] == ["b"]
    assert by_unit[4].verdict is Verdict.NEUTRAL
    assert by_unit[4].removed


def test_one_score_a_sample_accuses_every_class_that_shares_the_images():
    calibration = calibration_set(planted_masks(48), 12, classes=["none", "a", "b", "rest"])
    path = cswap.prune_path(
        PlantedSegmenter(), calibration, task=Segmentation(), target="noncritical", vote_score="sample"
    )
    needed = {d.unit: [e.name for e in d.effects.values() if e.pi < 0] for d in path}
    assert needed[1] == ["none", "a"]


class Normalised(torch.nn.Module):
    """Logits over their largest: 0 / 0 where the one unit that gives any is cut."""

    def __init__(self):
        super().__init__()
        self.first, self.head = torch.nn.Conv2d(4, 2, 1), torch.nn.Conv2d(2, 4, 1, bias=False)
        with torch.no_grad():
            self.first.bias.fill_(1.0)
            self.head.weight[:, 1] = 0.0

    def forward(self, x):
        logits = self.head(self.first(x).relu())
        return logits / logits.abs().amax((1, 2, 3), keepdim=True)


@pytest.mark.parametrize("vote_score", ["class", "sample"])
@pytest.mark.parametrize("task", [Segmentation(), SoftSegmentation()])
def test_logits_of_nan_are_no_class_that_is_absent(task, vote_score):
    """By class NaN says that a class is not there: a cut that makes logits NaN must not pass as one that costs nothing."""
    torch.manual_seed(0)
    calibration = calibration_set(planted_masks(48), 12, classes=["none", "a", "b", "rest"])
    with pytest.raises(RunError, match="not finite on calibration samples"):
        cswap.prune_path(Normalised(), calibration, task=task, target="noncritical", vote_score=vote_score)


def test_a_certificate_of_one_score_an_image_counts_it_for_every_class_it_holds():
    class Mean:
        """Mean probability of the right class, one number an image."""

        def score(self, outputs, targets):
            return outputs.softmax(1).gather(1, targets.clamp(0, 3).unsqueeze(1)).mean((1, 2, 3))

    data, classes = planted_masks(20), ["none", "a", "b", "rest"]
    original, small = PlantedSegmenter(), PlantedSegmenter()
    with torch.no_grad():
        next(small.parameters()).mul_(0.5)
    found = class_losses(original, small, data, completed(Mean()), classes, batch=7)
    with torch.no_grad():
        lost = [
            (Mean().score(original(x[None]), y[None]) - Mean().score(small(x[None]), y[None])).item() for x, y in data
        ]
    for k, name in enumerate(classes):
        by_hand = [v for v, (_, y) in zip(lost, data, strict=True) if (y == k).any()]
        np.testing.assert_allclose(found[name], by_hand, atol=1e-6)
    assert {len(v) for v in found.values()} != {20}


def test_a_smaller_draw_of_shared_images_lies_in_a_larger_one_and_samples_count_for_all_their_classes():
    data = planted_masks(60)
    small, large = (calibration_set(data, n, classes=["0", "1", "2", "3"]) for n in (5, 9))
    assert set(small.indices) < set(large.indices)
    assert len(set(large.indices)) == len(large)
    assert (np.diff(large.targets) >= 0).all()
    assert large.members.sum(0).tolist() == large.counts.tolist()
    assert (large.counts >= 9).all()
    assert large.counts.sum() > len(large)
    assert torch.equal(large.truth(slice(2, 3))[0], data[large.indices[2]][1])


def test_a_class_in_too_few_images_is_named():
    with pytest.raises(DataError, match="class '1': expected at least 30 samples, got 20"):
        calibration_set(planted_masks(60), 30, classes=["0", "1", "2", "3"])


def write_masks(root, count=8, size=(16, 12), classes=("sky", "road", "car")):
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for part in ("images", "masks"):
            (root / split / part).mkdir(parents=True)
        for i in range(count):
            mask = (
                rng.integers(0, len(classes) + 1, (size[1] // 4, size[0] // 4))
                .repeat(4, 0)
                .repeat(4, 1)
                .astype(np.uint8)
            )
            image = (np.stack([mask == k for k in range(3)], -1) * 200 + rng.integers(0, 40, (*mask.shape, 3))).astype(
                np.uint8
            )
            Image.fromarray(mask).save(root / split / "masks" / f"{i}.png")
            Image.fromarray(image).save(root / split / "images" / f"{i}.png")
    (root / "classes.txt").write_text("\n".join(classes) + "\n")


def test_folders_of_images_and_masks(tmp_path):
    write_masks(tmp_path)
    pair = open_data(str(tmp_path), ImageFormat(), ignore_index=3)
    image, mask = pair.train[0]
    assert (image.shape, mask.shape, mask.dtype) == ((3, 12, 16), (12, 16), torch.int64)
    assert pair.classes == ("sky", "road", "car")
    assert set(mask.unique().tolist()) <= {0, 1, 2, 255}
    with pytest.raises(DataError, match="class numbers below 3, got 3; in masks --ignore-index"):
        open_data(str(tmp_path), ImageFormat())
    image, mask = open_data(str(tmp_path), ImageFormat(asked=8), ignore_index=3).train[0]
    assert (image.shape, mask.shape) == ((3, 8, 8), (8, 8))
    (tmp_path / "train" / "masks" / "0.png").unlink()
    with pytest.raises(DataError, match=r"0\.png has none"):
        open_masks(tmp_path, ImageFormat(), None, None, 3)


def test_labels_move_the_numbers_of_masks(tmp_path):
    write_masks(tmp_path)
    (tmp_path / "order.txt").write_text("car\nsky\nroad\n")
    plain, moved = (
        open_data(str(tmp_path), ImageFormat(), ignore_index=3, labels=f) for f in (None, tmp_path / "order.txt")
    )
    table = torch.tensor([1, 2, 0, *range(3, 256)])
    assert moved.classes == ("car", "sky", "road")
    assert torch.equal(moved.train[0][1], table[plain.train[0][1]])


def test_dataset_miou_is_of_all_pixels_together():
    pytest.importorskip("torchmetrics")
    data = planted_masks(9)
    task = Segmentation()
    found = measure_quality({"net": PlantedSegmenter()}, data, task, 5, batch=4)["net"]
    assert found["miou"] == pytest.approx(1.0)
    assert found["by_class"] == [pytest.approx(1.0)] * 4 + [None]
    broken = PlantedSegmenter()
    with torch.no_grad():
        broken.say.weight[1] = 0  # class 1 becomes 3
    worse = measure_quality({"net": broken}, data, task, 4, batch=4)["net"]
    pixels = sum(int((m == 1).sum()) for _, m in data)
    threes = sum(int((m == 3).sum()) for _, m in data)
    assert worse["by_class"][1] == 0.0
    assert worse["by_class"][3] == pytest.approx(threes / (threes + pixels))


def trained(data):
    torch.manual_seed(0)
    net = dense_factory.small_unet()
    optimiser = torch.optim.Adam(net.parameters(), 0.02)
    x, y = (torch.stack([data[i][j] for i in range(len(data))]) for j in (0, 1))
    for _ in range(60):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(net(x)["out"], y, ignore_index=255).backward()
        optimiser.step()
    return net.eval()


def run(*args, ok=True):
    result = CliRunner().invoke(app, [str(a) for a in args])
    assert (result.exit_code == 0) is ok, result.output
    return json.loads(result.stdout) if ok and "--json" in args else result.output


def test_the_commands_prune_compare_apply_eval_and_explain_a_segmenter(tmp_path):
    pytest.importorskip("torchmetrics")
    from safetensors.torch import save_file

    write_masks(tmp_path / "data")
    net = trained(open_data(str(tmp_path / "data"), ImageFormat(), ignore_index=3).train)
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    common = [
        "--model", FACTORY, "--weights", tmp_path / "net.safetensors", "--data", tmp_path / "data", "--task", "segmentation",
        "--ignore-index", 3, "--per-class", 6, "--quiet", "--json",
    ]  # fmt: skip
    made = run("prune", *common, "--target", "units=0.3", "--out", tmp_path / "a", "--recover", "lstsq")
    assert made["baseline"]["quality"]["miou"] > 0.8
    assert len(made["pruned"]["quality"]["by_class"]) == 3
    assert made["engine"].startswith("replay")
    again = run("eval", tmp_path / "a", "--trust", "--quiet", "--json")
    assert again["pruned"]["quality"] == made["pruned"]["quality"]
    run("apply", tmp_path / "a", "--target", "units=0.1", "--out", tmp_path / "b", "--trust", "--quiet", "--json")
    told = run("explain", tmp_path / "a", "--class", "car", "--json")
    assert told["units"]
    assert all("car" in u["needed_by"] + u["hurts"] for u in told["units"])
    both = run(
        "compare", *common, "--methods", "cswap,cbp,magnitude,taylor,obs", "--ratios", "0,0.4,0.8", "--ratio-in", "units",
        "--recover", "none,bn", "--no-latency", "--out", tmp_path / "all",
    )  # fmt: skip
    assert both["headline"] == "miou"
    assert set(both["methods"]) == {"cswap", "cbp", "magnitude", "taylor", "obs"}


def test_a_task_for_other_targets_is_refused():
    calibration = calibration_set(planted_masks(12), 2, classes=["0", "1", "2", "3"])
    with pytest.raises(DataError, match="task classification: expected data with class numbers, got masks"):
        check_fits(PlantedSegmenter(), calibration, Classification())
    with pytest.raises(DataError, match="the model has 3 outputs and the data 4 classes"):
        check_fits(torch.nn.Sequential(PlantedSegmenter(), torch.nn.Conv2d(4, 3, 1)), calibration, Segmentation())


def test_a_fingerprint_is_of_every_image_and_every_mask():
    g = torch.Generator().manual_seed(0)
    images, masks = torch.rand(6, 3, 4, 4, generator=g), torch.randint(0, 2, (6, 4, 4), generator=g)
    masks[:, 0, 0], masks[:, 0, 1] = 0, 1  # each image holds both classes, whatever its other pixels are

    def drawn(x: torch.Tensor, y: torch.Tensor) -> str:
        return cswap.calibration_set([(a, b) for a, b in zip(x, y, strict=True)], 6, classes=["a", "b"]).fingerprint()

    first = drawn(images, masks)
    assert drawn(images.clone(), masks.clone()) == first
    for change in (0, 3):
        other, mask = images.clone(), masks.clone()
        other[change, 1, 2, 2] += 1.0
        mask[change, 3, 3] = 1 - mask[change, 3, 3]
        assert drawn(other, masks) != first
        assert drawn(images, mask) != first
