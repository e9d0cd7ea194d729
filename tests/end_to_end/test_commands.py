"""The commands as a user types them: what they write, what they print, what they refuse."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import cswap
from cswap.artifacts.folder import load, open_artifact
from cswap.cli.app import main
from cswap.cli.options import bytes_of
from cswap.data.models import ModelSpec, load_weights
from cswap.errors import ArtifactError, InputError
from cswap.structure.surgery import masked_copy


def _main(capsys, *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    status = main(list(arguments))
    out, err = capsys.readouterr()
    return status, out, err


def _refused(capsys, arguments: list[str], *words: str, status: int = 2) -> None:
    got, out, err = _main(capsys, *arguments)
    errors = [line for line in err.splitlines() if not line.startswith("cswap: warning")]
    assert got == status, err
    assert len(errors) == 1, err
    assert "Traceback" not in out + err
    for word in words:
        assert word in errors[0], errors[0]


def test_prune_writes_a_whole_artifact_and_load_gives_the_same_logits(place, capsys):
    status, out, err = _main(capsys, *place.prune("out", "--json"))
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

    original = ModelSpec.parse(f"{place.factory}:colours").build()
    load_weights(original, place.weights)
    artifact = open_artifact(folder)
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
    assert _main(capsys, *place.prune("out"))[0] == 0
    path = open_artifact(place.root / "out").path
    job = cswap.prune_path(
        _original(place), _calibration(place), target="params=0.3"
    )  # fmt: skip
    assert [(d.group, d.unit, d.verdict, d.removed) for d in path] == [
        (d.group, d.unit, d.verdict, d.removed) for d in job
    ]
    for mine, stored in zip(job, path, strict=True):
        if mine.phase == "walk":
            np.testing.assert_array_equal(mine.effects.p, stored.effects.p)
            np.testing.assert_array_equal(mine.effects.mean, stored.effects.mean)


def _original(place):
    model = ModelSpec.parse(f"{place.factory}:colours").build()
    load_weights(model, place.weights)
    return model


def _calibration(place):
    from cswap.data.sources import ImageFormat, open_data

    pair = open_data(str(place.data), ImageFormat(8, 8, (0.5,) * 3, (0.5,) * 3))
    return cswap.calibration_set(pair.train, 6, 0)


def test_apply_eval_explain_support(place, capsys):
    assert _main(capsys, *place.prune("out"))[0] == 0
    out = str(place.root / "out")
    status, text, _ = _main(
        capsys,
        "apply",
        out,
        "--target",
        "params=0.1",
        "--out",
        str(place.root / "small"),
        "--trust",
        "--json",
        "--quiet",
    )
    assert status == 0
    first = json.loads(text)
    assert 0.1 <= first["ratio"]["params"] < 0.3
    assert cswap.load(place.root / "small", trust=True)(torch.zeros(1, 3, 8, 8)).shape == (1, 3)
    full = [(d.group, d.unit) for d in open_artifact(out).path if d.removed]
    removed = open_artifact(place.root / "small").path.prefix("params=0.1")[0]
    count = sum(map(len, removed.values()))
    assert {(g, int(n)) for g, units in removed.items() for n in units} == set(full[:count])

    status, text, _ = _main(capsys, "eval", out, "--data", str(place.data), "--trust", "--json", "--quiet")
    assert status == 0
    assert json.loads(text)["baseline"]["quality"]["accuracy"] == 1.0
    for more in ([], ["--group", "b"], ["--class", "red"], ["--group", "b", "--unit", "0"]):
        status, text, _ = _main(capsys, "explain", out, *more)
        assert status == 0
        assert "b" in text
    status, text, _ = _main(capsys, "explain", out, "--group", "b", "--unit", "2", "--json")
    (unit,) = json.loads(text)["units"]
    assert unit["needed_by"] == ["red"]
    status, text, _ = _main(capsys, "support", "--model", f"{place.factory}:colours", "--image-size", "8")
    assert status == 0
    assert "model's output" in " ".join(text.split())
    _refused(
        capsys, ["apply", out, "--target", "params=0.8", "--out", str(place.root / "no")], "beyond the path", "--resume"
    )
    assert not (place.root / "no").exists()
    _refused(capsys, ["apply", out, "--target", "params=0.1", "--out", str(place.root / "no")], "--trust")
    manifest = json.loads((place.root / "out" / "manifest.json").read_text())
    evil = place.root / "evil.py"
    evil.write_text(f"import pathlib; pathlib.Path({str(place.root / 'ran')!r}).touch()")
    manifest["data"]["text"] = f"{evil}:data"
    (place.root / "out" / "manifest.json").write_text(json.dumps(manifest))
    model = ["--model", f"{place.factory}:colours", "--weights", str(place.weights)]
    _refused(capsys, ["eval", out, *model], "code that would run", "--data")
    assert not (place.root / "ran").exists()
    _refused(capsys, ["explain", out, "--group", "zzz"], "no group 'zzz'")
    _refused(capsys, ["explain", out, "--group", "b", "--unit", "99"], "units 0 to 5")
    _refused(capsys, ["explain", out, "--class", "purple"], "blue")


@pytest.mark.parametrize("method", ["magnitude", "random"])
def test_the_other_methods_give_artifacts_too(place, capsys, method):
    status, text, _ = _main(
        capsys, *place.prune("out", "--method", method, "--scope", "global", "--json", target="units=0.2")
    )
    assert status == 0
    assert json.loads(text)["ratio"]["units"] >= 0.2
    assert cswap.load(place.root / "out", trust=True) is not None


def test_bad_input_is_one_line_and_status_2(place, capsys):
    root = place.root
    assert _main(capsys, *place.prune("whole"))[0] == 0

    def with_(*changes: str) -> list[str]:
        return [*place.prune("bad"), *changes]

    other = {k: v for k, v in load_file(place.weights).items() if not k.startswith("b.")}
    save_file({**other, "z.weight": torch.zeros(2)}, root / "other.safetensors")
    poison = load_file(place.weights)
    poison["fc.bias"] = torch.full((3,), float("nan"))
    save_file(poison, root / "nan.safetensors")
    (root / "torn.safetensors").write_bytes(place.weights.read_bytes()[:200])
    (root / "evil.pt").write_bytes(b"cos\nsystem\n(S'touch " + str(root / "owned").encode() + b"'\ntR.")
    torch.save({"state_dict": {"x": 1}}, root / "odd.pt")
    for changes, words in (
        (["--weights", str(root / "none.safetensors")], ["found none"]),
        (["--weights", str(root / "other.safetensors")], ["of another model", "missing", "unexpected"]),
        (["--weights", str(root / "nan.safetensors")], ["NaN"]),
        (["--weights", str(root / "torn.safetensors")], ["no readable safetensors"]),
        (["--weights", str(root / "evil.pt")], ["cannot be read"]),
        (["--weights", str(root / "odd.pt")], ["dict of tensors"]),
        (["--weights", str(place.factory)], [".safetensors"]),
        (["--model", "torchvision:nosuch"], ["no model of that name"]),
        (["--model", "nosuch"], ["expected torchvision:NAME"]),
        (["--model", "no.such.module:f"], ["cannot import"]),
        (["--model", f"{place.factory}:nosuch"], ["no factory"]),
        (["--model", f"{place.factory}:broken"], ["this factory fails"]),
        (["--model", f"{place.factory}:not_a_module"], ["nn.Module", "int"]),
        (["--model", "hf:./nosuch"], ["expected a folder with config.json"]),
        (["--model-arg", "classes=4"], ["of another model", "shape"]),
        (["--model-arg", "oops"], ["NAME=VALUE"]),
        (["--target", "params=1.5"], ["1.5", "0 <= F < 1"]),
        (["--target", "params=x"], ["no number"]),
        (["--target", "weight=0.1"], ["expected params=F"]),
        (["--target", "latency=1.5"], ["latency"]),
        (["--target", "params=0.99"], ["out of reach"]),
        (["--data", str(root / "nowhere")], ["no such folder"]),
        (["--data", str(root)], ["there is no train/"]),
        (["--data", "hf:/nowhere/x"], ["hf:NAME_OR_DIR", "no such folder"]),
        (["--data", "torchvision:Nosuch@x"], ["torchvision dataset"]),
        (["--per-class", "11"], ["'blue'", "at least 11", "got 10"]),
        (["--per-class", "1"], ["at least 2"]),
        (["--alpha", "2"], ["alpha"]),
        (["--seed", "-1"], ["seed"]),
        (["--memory", "1e999"], ["memory"]),
        (["--alpha", "x"], ["alpha"]),
        (["--vote", "x"], ["vote"]),
        (["--correction", "x"], ["correction"]),
        (["--order", "x"], ["order"]),
        (["--max-drop", "2"], ["max-drop"]),
        (["--xi-floor", "0"], ["xi-floor"]),
        (["--method", "x"], ["cbp, cswap, deeplift, greedy, joint, lamp, lrp, magnitude, obs, random, taylor, taylor2"]),
        (["--task", "x"], ["classification"]),
        (["--only", "zzz"], ["matches no group"]),
        (["--exclude", "*"], ["no group to prune"]),
        (["--effects", "some"], ["full, verdict"]),
        (["--effects", "verdict", "--vote", "pooled"], ["--vote class"]),
        (["--recover", "magic"], ["recover: expected none or some of", "'magic'"]),
        (["--device", "cuda:77"], ["device"]),
        (["--memory", "lots"], ["4GiB"]),
        (["--memory", "64"], ["memory"]),
        (["--mean", "a,b"], ["mean"]),
        (["--std", "0,1,1"], ["above 0"]),
        (["--image-size", "0"], ["image-size"]),
        (["--labels", str(root / "none.txt")], ["labels"]),
        (["--eval-samples", "0"], ["eval-samples"]),
        (["--nosuch"], ["--nosuch"]),
        (["--out", str(root / "whole")], ["holds an artifact", "--force"]),
        (["--out", str(place.factory)], ["is a file"]),
        (["--out", str(place.data)], ["other files"]),
    ):  # fmt: skip
        _refused(capsys, with_(*changes), *words)
    for name, words in (("nosuch", "no factory"), ("not_a_module", "(train, eval)")):
        _refused(capsys, place.prune("bad", data=f"{place.factory}:{name}"), words)
    assert not (root / "owned").exists()
    assert not (root / "bad").exists()
    assert cswap.load(root / "whole", trust=True) is not None  # nothing was lost
    _refused(capsys, ["eval", str(root / "nowhere")], "found none")
    _refused(capsys, ["nosuch"], "nosuch")


def test_a_class_with_one_sample_and_an_unreadable_image(place, capsys):
    for image in sorted((place.data / "train" / "red").iterdir())[1:]:
        image.unlink()
    _refused(capsys, place.prune("o"), "'red'", "got 1", "at least 2", "give more of the class")
    _refused(capsys, place.prune("o", "--allow-imbalance"), "'red'", "at least 2", "got 1")
    shutil.copy(place.data / "train" / "red" / "000.png", place.data / "train" / "red" / "001.png")
    status, _, err = _main(capsys, *place.prune("o", "--allow-imbalance", target="units=0.1"))
    assert status == 0
    assert "warning" in err
    assert "red has 2" in err
    (place.data / "train" / "red" / "001.png").write_bytes(b"not an image")
    _refused(capsys, place.prune("p", "--allow-imbalance"), "001.png", "cannot be read")


def test_a_network_near_chance_and_labels_that_mend_it(place, capsys):
    swapped = place.root / "swapped"
    for split in ("train", "test"):
        for old, new in (("blue", "c"), ("green", "a"), ("red", "b")):
            shutil.copytree(place.data / split / old, swapped / split / new)
    _refused(capsys, place.prune("o", data=str(swapped)), "chance", "--labels")
    order = place.root / "order.txt"
    order.write_text("c\na\nb\n")
    status, text, _ = _main(capsys, *place.prune("o", "--labels", str(order), "--json", "--force", data=str(swapped)))
    assert status == 0
    assert json.loads(text)["baseline"]["quality"]["accuracy"] == 1.0


def test_data_with_some_of_the_model_s_classes(place, capsys):
    """A model of more outputs than the data has classes: --labels says which; σ and quality are among all of its outputs."""
    state = load_file(place.weights)
    wide = torch.full((7, 6), -0.1)
    wide[[5, 0, 3]] = state["fc.weight"]  # blue, green, red
    save_file({**state, "fc.weight": wide, "fc.bias": torch.zeros(7)}, place.weights)
    (place.root / "labels.json").write_text('{"blue": 5, "green": 0, "red": 3}')
    more = ["--model-arg", "classes=7"]
    _refused(capsys, place.prune("a", *more), "7 outputs", "3 classes", "--labels")
    labels = ["--labels", str(place.root / "labels.json")]
    status, out, err = _main(capsys, *place.prune("b", *more, *labels, "--json"))
    assert status == 0, err
    summary = json.loads(out)
    assert summary["classes"] == ["green", "red", "blue"]
    assert summary["baseline"]["quality"]["accuracy"] == 1.0
    status, out, err = _main(capsys, "eval", str(place.root / "b"), "--trust", "--json")
    assert status == 0, err
    assert json.loads(out)["baseline"]["quality"]["accuracy"] == 1.0
    for method in ("taylor", "lrp", "deeplift"):
        assert _main(capsys, *place.prune(method, *more, *labels, "--method", method))[0] == 0
    (place.root / "labels.json").write_text('{"blue": 7, "green": 0, "red": 3}')
    _refused(capsys, place.prune("c", *more, *labels), "outputs below the model's 7", "got 7")


def test_resume_goes_on_and_a_changed_run_is_refused(place, capsys):
    assert _main(capsys, *place.prune("once", target="params=0.5"))[0] == 0
    whole = (place.root / "once" / "path.jsonl").read_text()
    assert _main(capsys, *place.prune("grown", target="params=0.1"))[0] == 0
    _refused(capsys, place.prune("grown", "--resume", "--seed", "1", target="params=0.5"), "options.seed was 0", "is 1")
    _refused(
        capsys, place.prune("grown", "--resume", "--alpha", "0.1", target="params=0.5"), "options.alpha", "0.05", "0.1"
    )
    assert _main(capsys, *place.prune("grown", "--resume", target="params=0.5"))[0] == 0
    assert _same_path(whole, (place.root / "grown" / "path.jsonl").read_text())


def test_verdict_mode_grows_from_an_artifact_and_explains_itself(place, capsys):
    verdict = ["--effects", "verdict"]
    assert _main(capsys, *place.prune("v-once", *verdict, target="params=0.5"))[0] == 0
    whole = (place.root / "v-once" / "path.jsonl").read_text()
    assert _main(capsys, *place.prune("v-grown", *verdict, target="noncritical"))[0] == 0
    _refused(capsys, place.prune("v-grown", "--resume", target="params=0.5"), "options.effects", "verdict", "full")
    assert _main(capsys, *place.prune("v-grown", "--resume", *verdict, target="params=0.5"))[0] == 0
    grown = (place.root / "v-grown" / "path.jsonl").read_text()
    keys = ("step", "phase", "group", "unit", "verdict", "removed", "reason")
    a, b = ([[json.loads(x)[k] for k in keys] for x in text.splitlines()] for text in (whole, grown))
    assert a == b
    lines = [json.loads(x) for x in whole.splitlines()]
    assert {"walk", "score", "buffer"} == {x["phase"] for x in lines}
    early = next(x for x in lines if x["phase"] == "walk" and x["xi"] is None)
    assert early["verdict"] == "critical"
    assert [c["p"] is None for c in early["classes"]].count(True) in (1, 2)  # null: not asked
    asked = _main(
        capsys, "explain", str(place.root / "v-once"), "--group", early["group"], "--unit", str(early["unit"]), "--json"
    )
    story = json.loads(asked[1])["units"][0]
    assert [e["p"] is not None for e in story["effects"]] == [
        True
    ] * 3  # the buffer's scores fill in what the walk skipped
    assert (
        _main(
            capsys,
            "apply",
            str(place.root / "v-once"),
            "--target",
            "units=0.1",
            "--out",
            str(place.root / "v-less"),
            "--trust",
            "--quiet",
        )[0]
        == 0
    )


def _same_path(a: str, b: str) -> bool:
    la, lb = [json.loads(x) for x in a.splitlines()], [json.loads(x) for x in b.splitlines()]
    keys = ("step", "phase", "group", "unit", "verdict", "removed", "reason")
    return [[x[k] for k in keys] for x in la] == [[x[k] for k in keys] for x in lb] and bool(
        np.allclose([x["xi"] for x in la], [x["xi"] for x in lb], atol=1e-6)
    )


def test_a_torn_journal_is_repaired_and_a_broken_one_refused(place, capsys):
    assert _main(capsys, *place.prune("once", target="params=0.5"))[0] == 0
    whole = (place.root / "once" / "path.jsonl").read_text()
    journal = place.root / "torn"
    assert _main(capsys, *place.prune("torn", target="params=0.3"))[0] == 0
    (journal / "run.json").write_text(json.dumps(json.loads((journal / "manifest.json").read_text())["run"]))
    (journal / "manifest.json").unlink()  # as a run killed on the way leaves it
    text = (journal / "path.jsonl").read_text()
    (journal / "path.jsonl").write_text(text[:-25])
    _refused(capsys, ["eval", str(journal)], "unfinished run")
    assert _main(capsys, *place.prune("torn", "--resume", target="params=0.5"))[0] == 0
    assert _same_path(whole, (journal / "path.jsonl").read_text())
    lines = whole.splitlines(keepends=True)
    lines[1] = lines[1][:30] + "\n"
    (journal / "path.jsonl").write_text("".join(lines))
    _refused(capsys, place.prune("torn", "--resume", target="params=0.5"), "line 2", "no decision")


def test_an_interrupted_run_keeps_its_journal_and_resumes_to_the_same_path(place):
    """Kill a real process at several moments; --resume must end where an uninterrupted run ends."""
    command = [sys.executable, "-m", "cswap"]
    target = "params=0.6"
    subprocess.run([*command, *place.prune("once", target=target)], check=True, capture_output=True)
    whole = (place.root / "once" / "path.jsonl").read_text()
    steps = len(whole.splitlines())
    for i, (how, after) in enumerate(((signal.SIGINT, 2), (signal.SIGTERM, steps // 2), (signal.SIGKILL, steps - 2))):
        out = place.root / f"stopped{i}"
        process = subprocess.Popen(
            [*command, *place.prune(out.name, target=target)], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        while process.poll() is None and _lines(out) < after:
            time.sleep(0.001)
        process.send_signal(how)
        err = process.communicate()[1]
        if how is not signal.SIGKILL and process.returncode == 130:
            assert "--resume" in err
            assert len(err.strip().splitlines()) == 1
        assert not (out / "manifest.json").exists() or process.returncode == 0
        again = "--resume" if out.exists() else "--quiet"
        subprocess.run([*command, *place.prune(out.name, again, target=target)], check=True, capture_output=True)
        assert _same_path(whole, (out / "path.jsonl").read_text())


def _lines(folder: Path) -> int:
    path = folder / "path.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def test_force_replaces_an_artifact(place, capsys):
    assert _main(capsys, *place.prune("out"))[0] == 0
    before = json.loads((place.root / "out" / "manifest.json").read_text())["target"]
    assert _main(capsys, *place.prune("out", "--force", target="params=0.1"))[0] == 0
    assert json.loads((place.root / "out" / "manifest.json").read_text())["target"] != before


def test_a_forced_run_that_fails_gives_the_old_artifact_back(place, capsys):
    assert _main(capsys, *place.prune("out"))[0] == 0
    before = {p.name: p.read_bytes() for p in (place.root / "out").iterdir()}
    untrained = {k: torch.zeros_like(v) for k, v in load_file(place.weights).items()}
    save_file(untrained, place.root / "untrained.safetensors")
    _refused(capsys, place.prune("out", "--force", "--weights", str(place.root / "untrained.safetensors")), "chance")
    out = str(place.root / "out")
    _refused(
        capsys, ["apply", out, "--target", "params=0.1", "--out", out, "--force", "--trust"], "the artifact itself"
    )
    assert {p.name: p.read_bytes() for p in (place.root / "out").iterdir()} == before
    assert not (place.root / "out.before-force").exists()


def test_a_folder_of_the_user_s_own_is_never_written_to(place, capsys):
    own = place.root / "own"
    own.mkdir()
    (own / "factory.py").write_text("mine = 1")
    for more in (["--force"], ["--resume"], []):
        _refused(capsys, place.prune("own", *more), "other files")
    path = cswap.prune_path(_original(place), _calibration(place), target="params=0.3")
    with pytest.raises(InputError, match="other files"):
        cswap.save(path.apply(_original(place), "params=0.2"), own, path=path, force=True)
    assert [p.name for p in own.iterdir()] == ["factory.py"]


def test_data_with_other_classes_is_refused(place, capsys):
    assert _main(capsys, *place.prune("out"))[0] == 0
    other = place.root / "other"
    for split in ("train", "test"):
        shutil.copytree(place.data / split, other / split)
        (other / split / "blue").rename(other / split / "yellow")
    _refused(capsys, ["eval", str(place.root / "out"), "--data", str(other), "--trust"], "the artifact's classes, 3 (")
    shutil.rmtree(other / "test" / "yellow")
    order = place.root / "order.txt"
    order.write_text("green\nred\nyellow\n")
    _refused(capsys, place.prune("o", "--labels", str(order), data=str(other)), "different classes")


def test_noncritical_needs_a_finished_walk(place, capsys):
    assert _main(capsys, *place.prune("out", target="params=0.05"))[0] == 0
    _refused(
        capsys,
        ["apply", str(place.root / "out"), "--target", "noncritical", "--out", str(place.root / "n"), "--trust"],
        "tested",
        "--resume",
    )


def test_a_manifest_cannot_lead_out_of_its_folder_or_be_changed(place, capsys):
    assert _main(capsys, *place.prune("out"))[0] == 0
    folder = place.root / "out"
    good = json.loads((folder / "manifest.json").read_text())
    shutil.copy(folder / "model.safetensors", place.root / "stolen.safetensors")

    def broken(change) -> None:
        data = json.loads(json.dumps(good))
        change(data)
        (folder / "manifest.json").write_text(json.dumps(data))
        with pytest.raises(ArtifactError):
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
        cswap.load(folder, factory=lambda: _original(place))


def test_save_and_load_from_python_and_random_state(place, tmp_path):
    model, calibration = _original(place), _calibration(place)
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
    assert torch.equal(cswap.load(bare, factory=lambda: _original(place))(x), small(x))


def test_disagreement_writes_nothing(place, capsys, monkeypatch):
    from cswap.methods import path
    from cswap.structure.check import Agreement

    monkeypatch.setattr(path, "agreement", lambda *_: Agreement(1.0, 1e-4, 1.0, "output", True))
    _refused(capsys, place.prune("out"), "max |masked − pruned| = 1", "nothing was written", status=1)
    assert not (place.root / "out" / "manifest.json").exists()
    assert not (place.root / "out" / "model.safetensors").exists()


def test_sizes_are_read_as_people_write_them():
    assert [bytes_of(t) for t in ("4GiB", "512 MiB", "2e9", "1k")] == [4 << 30, 512 << 20, 2_000_000_000, 1024]


def test_version_and_module_entry():
    done = subprocess.run([sys.executable, "-m", "cswap", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == cswap.__version__


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_closed_pipe_ends_a_command_without_a_word(place, unbuffered):
    """As of `cswap explain out | head -2`: nobody reads on, which is no failure of the model or the data."""
    assert main(place.prune("out")) == 0
    command = [sys.executable, "-m", "cswap", "explain", str(place.root / "out")]
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(
            command, stdout=write, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": unbuffered}
        )
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


def test_prune_and_apply_give_back_what_can_be_given_back(place, capsys):
    """Recovered weights go into the artifact, with what was done; apply recovers another target from the same path."""
    prune = place.prune("mended", "--method", "random", "--recover", "lstsq", "--json", target="units=0.6")
    status, out, err = _main(capsys, *prune)
    assert (status, err) == (0, "")
    summary = json.loads(out)
    recovery = summary["recovery"]
    assert recovery["how"] == "lstsq"
    assert recovery["declined"] is None
    assert recovery["score_after"] > recovery["score_before"]
    assert set(recovery["facts"]["lstsq"]) <= {"a", "b", "fc"}
    assert summary["seconds"]["recovery"] > 0
    folder = place.root / "mended"
    assert json.loads((folder / "manifest.json").read_text())["recovery"] == recovery
    plain = place.prune("plain", "--method", "random", "--json", target="units=0.6")
    status, out, _ = _main(capsys, *plain)
    assert status == 0
    assert json.loads(out)["recovery"] is None
    assert summary["pruned"]["quality"]["accuracy"] >= json.loads(out)["pruned"]["quality"]["accuracy"]
    mended, cut = (load(place.root / n, trust=True) for n in ("mended", "plain"))
    x = torch.randn(4, 3, 8, 8)
    assert not torch.allclose(mended(x), cut(x))
    again = cswap.recover(cut, _original(place), _calibration(place), "lstsq")  # a loaded module knows what it lacks
    assert torch.allclose(again(x), mended(x), atol=1e-5)
    status, out, err = _main(
        capsys, "apply", str(folder), "--target", "units=0.3", "--recover", "bn+lstsq", "--out", str(place.root / "less"), "--trust", "--json", "--quiet",
    )  # fmt: skip
    assert (status, err) == (0, "")
    assert json.loads(out)["recovery"]["how"] == "bn+lstsq"
    status, out, _ = _main(
        capsys, "apply", str(folder), "--target", "units=0.6", "--recover", "bias", "--out", str(place.root / "means"), "--trust", "--quiet",
    )  # fmt: skip
    assert status == 0
    judged = len(_calibration(place))  # nothing is held back where nothing is fitted
    assert f"recovery bias: mean score of {judged} calibration samples from" in " ".join(out.split())
    _refused(
        capsys,
        ["apply", str(folder), "--target", "units=0.3", "--recover", "x", "--out", str(place.root / "no"), "--trust"],
        "recover",
    )
    assert not (place.root / "no").exists()


def _original(place):
    original = ModelSpec.parse(f"{place.factory}:colours").build()
    load_weights(original, place.weights)
    return original.eval()


def _calibration(place):
    from cswap.pipeline import DataChoice

    pair = DataChoice(str(place.data), image_size=8, mean="0.5,0.5,0.5", std="0.5,0.5,0.5").open(None)
    return cswap.calibration_set(pair.train, 6, 0, classes=pair.classes)


@pytest.mark.parametrize("where", ["cswap.types.Target.parse", "cswap.pipeline.prune"])
def test_an_interrupt_says_so_wherever_it_comes(place, capsys, monkeypatch, where):
    def interrupted(*_args, **_more):
        raise KeyboardInterrupt

    monkeypatch.setattr(where, interrupted)
    assert main(place.prune("out")) == 130
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("cswap: interrupted")
