"""An artifact: it holds the network and its whole path, loads in another process, is replaced whole, and cannot be tampered with unseen."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import cswap
from cswap.artifacts.folder import load, open_artifact
from cswap.data.models import ModelSpec
from cswap.errors import ArtifactError, InputError
from cswap.structure.surgery import masked_copy
from tests.end_to_end.commands import ran, refused


def test_prune_writes_a_whole_artifact_and_load_gives_the_same_logits(place, capsys):
    status, out, err = ran(capsys, *place.prune("out", "--json"))
    assert (status, err) == (0, "")
    folder = place.root / "out"
    summary = json.loads(out)
    assert summary == json.loads((folder / "summary.json").read_text())
    assert sorted(p.name for p in folder.iterdir()) == [
        "curve.json", "effects.safetensors", "factory.py", "manifest.json", "model.safetensors", "path.jsonl", "summary.json",
    ]  # fmt: skip
    assert summary["ratio"]["params"] >= 0.3
    for side in ("baseline", "pruned"):
        assert set(summary[side]) == {"quality", "params", "macs", "latency_ms"}
        assert set(summary[side]["latency_ms"]) == {"1", "64"}
    assert summary["baseline"]["quality"]["accuracy"] == 1.0
    assert sum(summary["verdicts"].values()) > 0

    original, artifact = place.original(), open_artifact(folder)
    removed, _, _ = artifact.path.prefix("params=0.3")
    x = torch.randn(5, 3, 8, 8)
    code = (
        "import sys, torch, cswap; from safetensors.torch import load_file, save_file;"
        "m = cswap.load(sys.argv[1], trust=True); x = load_file(sys.argv[2])['x'];"
        "save_file({'y': m(x).detach()}, sys.argv[3])"
    )
    save_file({"x": x}, place.root / "x.st")
    subprocess.run(
        [sys.executable, "-c", code, str(folder), str(place.root / "x.st"), str(place.root / "y.st")],
        check=True,
        cwd="/",
    )
    with torch.no_grad():
        expected = masked_copy(original, artifact.structure, removed)(x)
    assert torch.allclose(load_file(place.root / "y.st")["y"], expected, atol=1e-5)
    small = load(folder, factory=lambda: ModelSpec.parse(f"{place.factory}:colours").build())
    assert sum(p.numel() for p in small.parameters()) == summary["pruned"]["params"]
    kept = artifact.manifest["kept"]["a.weight"]["0"]
    assert torch.equal(small.a.weight, original.a.weight[kept])


def test_the_stored_path_is_the_path_and_its_effects(place, capsys):
    assert ran(capsys, *place.prune("out"))[0] == 0
    path = open_artifact(place.root / "out").path
    job = cswap.prune_path(place.original(), place.calibration(), target="params=0.3")
    assert [(d.group, d.unit, d.verdict, d.removed) for d in path] == [
        (d.group, d.unit, d.verdict, d.removed) for d in job
    ]
    for mine, stored in zip(job, path, strict=True):
        if mine.phase == "walk":
            np.testing.assert_array_equal(mine.effects.p, stored.effects.p)
            np.testing.assert_array_equal(mine.effects.mean, stored.effects.mean)


def test_a_manifest_cannot_lead_out_of_its_folder_or_be_changed(place, capsys):
    assert ran(capsys, *place.prune("out"))[0] == 0
    folder = place.root / "out"
    good = json.loads((folder / "manifest.json").read_text())
    shutil.copy(folder / "model.safetensors", place.root / "stolen.safetensors")

    def broken(change, match: str | None = None) -> None:
        data = json.loads(json.dumps(good))
        change(data)
        (folder / "manifest.json").write_text(json.dumps(data))
        with pytest.raises(ArtifactError, match=match):
            cswap.load(folder, trust=True)

    broken(lambda m: m["weights"].update(file="../stolen.safetensors"))
    broken(lambda m: m["weights"].update(file=str(place.root / "stolen.safetensors")))
    broken(lambda m: m["weights"].update(file=7))
    broken(lambda m: m["weights"].update(sha256="0" * 64))
    broken(lambda m: m.pop("weights"))
    broken(lambda m: m.update(schema="other/9"))
    broken(lambda m: m["kept"].update({"a.weight": {"0": [0, 99]}}))
    broken(lambda m: m["kept"].update({"a.weight": {"0": [1, 1]}}))
    broken(lambda m: m["kept"].update({"a.weight": {"9": [1]}}))
    broken(lambda m: m["kept"].update({"nosuch.weight": {"0": [1]}}))
    broken(lambda m: m["kept"].pop("a.weight"))
    kept = good["kept"]["a.weight"]["0"]
    others = sorted({*kept[1:], next(i for i in range(kept[-1] + 2) if i not in kept)})  # as many, so every shape fits
    broken(lambda m: m["kept"]["a.weight"].update({"0": others}), match="contradict each other")
    broken(lambda m: m["factory"].update(file="../net.py"))
    broken(lambda m: m["factory"].update(sha256="0"))
    broken(lambda m: m.pop("factory"))
    (folder / "manifest.json").write_text(json.dumps(good))
    with pytest.raises(ArtifactError, match="trust"):
        cswap.load(folder)
    (folder / "factory.py").write_text("raise SystemExit('ran')")
    with pytest.raises(ArtifactError, match="hash"):
        cswap.load(folder, trust=True)
    (folder / "factory.py").unlink()
    (folder / "factory.py").symlink_to(place.factory)
    with pytest.raises(ArtifactError, match="out of the folder"):
        cswap.load(folder, trust=True)
    (folder / "factory.py").unlink()
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(ArtifactError, match="hash"):
        cswap.load(folder, factory=lambda: place.original())


def test_save_and_load_from_python_and_random_state(place, tmp_path):
    model, calibration = place.original(), place.calibration()
    path = cswap.prune_path(model, calibration, target="params=0.3")
    small = path.apply(model, "params=0.2")
    folder = cswap.save(small, tmp_path / "art", path=path, factory=f"{place.factory}:colours")
    state = torch.get_rng_state()
    again = cswap.load(folder, trust=True)
    assert torch.equal(state, torch.get_rng_state())
    x = torch.randn(3, 3, 8, 8)
    assert torch.equal(again(x), small.eval()(x))
    with pytest.raises(InputError, match="force"):
        cswap.save(small, folder, path=path)
    with pytest.raises(InputError, match="path.apply"):
        cswap.save(model, tmp_path / "no", path=path)
    bare = cswap.save(small, tmp_path / "bare", path=path)
    with pytest.raises(ArtifactError, match="factory="):
        cswap.load(bare)
    assert torch.equal(cswap.load(bare, factory=lambda: place.original())(x), small(x))


def test_force_replaces_an_artifact(place, capsys):
    assert ran(capsys, *place.prune("out"))[0] == 0
    before = json.loads((place.root / "out" / "manifest.json").read_text())["target"]
    assert ran(capsys, *place.prune("out", "--force", target="params=0.1"))[0] == 0
    assert json.loads((place.root / "out" / "manifest.json").read_text())["target"] != before


def test_a_forced_run_that_fails_gives_the_old_artifact_back(place, capsys):
    assert ran(capsys, *place.prune("out"))[0] == 0
    before = {p.name: p.read_bytes() for p in (place.root / "out").iterdir()}
    untrained = {k: torch.zeros_like(v) for k, v in load_file(place.weights).items()}
    save_file(untrained, place.root / "untrained.safetensors")
    refused(capsys, place.prune("out", "--force", "--weights", str(place.root / "untrained.safetensors")), "chance")
    out = str(place.root / "out")
    refused(capsys, ["apply", out, "--target", "params=0.1", "--out", out, "--force", "--trust"], "the artifact itself")
    assert {p.name: p.read_bytes() for p in (place.root / "out").iterdir()} == before
    assert not (place.root / "out.before-force").exists()


def test_a_folder_of_the_user_s_own_is_never_written_to(place, capsys):
    own = place.root / "own"
    own.mkdir()
    (own / "factory.py").write_text("mine = 1")
    for more in (["--force"], ["--resume"], []):
        refused(capsys, place.prune("own", *more), "other files")
    path = cswap.prune_path(place.original(), place.calibration(), target="params=0.3")
    with pytest.raises(InputError, match="other files"):
        cswap.save(path.apply(place.original(), "params=0.2"), own, path=path, force=True)
    assert [p.name for p in own.iterdir()] == ["factory.py"]
