"""What the commands refuse: one line that says what was expected and what came, and nothing lost."""

from __future__ import annotations

import json
import shutil

import torch
from safetensors.torch import load_file, save_file

import cswap
from tests.end_to_end.commands import ran, refused


def test_bad_input_is_one_line_and_status_2(place, capsys):
    root = place.root
    assert ran(capsys, *place.prune("whole"))[0] == 0

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
        refused(capsys, with_(*changes), *words)
    for name, words in (("nosuch", "no factory"), ("not_a_module", "(train, eval)")):
        refused(capsys, place.prune("bad", data=f"{place.factory}:{name}"), words)
    assert not (root / "owned").exists()
    assert not (root / "bad").exists()
    assert cswap.load(root / "whole", trust=True) is not None  # nothing was lost
    refused(capsys, ["eval", str(root / "nowhere")], "found none")
    refused(capsys, ["nosuch"], "nosuch")


def test_a_class_with_one_sample_and_an_unreadable_image(place, capsys):
    for image in sorted((place.data / "train" / "red").iterdir())[1:]:
        image.unlink()
    refused(capsys, place.prune("o"), "'red'", "got 1", "at least 2", "give more of the class")
    refused(capsys, place.prune("o", "--allow-imbalance"), "'red'", "at least 2", "got 1")
    shutil.copy(place.data / "train" / "red" / "000.png", place.data / "train" / "red" / "001.png")
    status, _, err = ran(capsys, *place.prune("o", "--allow-imbalance", target="units=0.1"))
    assert status == 0
    assert "warning" in err
    assert "red has 2" in err
    (place.data / "train" / "red" / "001.png").write_bytes(b"not an image")
    refused(capsys, place.prune("p", "--allow-imbalance"), "001.png", "cannot be read")


def test_a_network_near_chance_and_labels_that_mend_it(place, capsys):
    swapped = place.root / "swapped"
    for split in ("train", "test"):
        for old, new in (("blue", "c"), ("green", "a"), ("red", "b")):
            shutil.copytree(place.data / split / old, swapped / split / new)
    refused(capsys, place.prune("o", data=str(swapped)), "chance", "--labels")
    order = place.root / "order.txt"
    order.write_text("c\na\nb\n")
    status, text, _ = ran(capsys, *place.prune("o", "--labels", str(order), "--json", "--force", data=str(swapped)))
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
    refused(capsys, place.prune("a", *more), "7 outputs", "3 classes", "--labels")
    labels = ["--labels", str(place.root / "labels.json")]
    status, out, err = ran(capsys, *place.prune("b", *more, *labels, "--json"))
    assert status == 0, err
    summary = json.loads(out)
    assert summary["classes"] == ["green", "red", "blue"]
    assert summary["baseline"]["quality"]["accuracy"] == 1.0
    status, out, err = ran(capsys, "eval", str(place.root / "b"), "--trust", "--json")
    assert status == 0, err
    assert json.loads(out)["baseline"]["quality"]["accuracy"] == 1.0
    for method in ("taylor", "lrp", "deeplift"):
        assert ran(capsys, *place.prune(method, *more, *labels, "--method", method))[0] == 0
    (place.root / "labels.json").write_text('{"blue": 7, "green": 0, "red": 3}')
    refused(capsys, place.prune("c", *more, *labels), "outputs below the model's 7", "got 7")


def test_data_with_other_classes_is_refused(place, capsys):
    assert ran(capsys, *place.prune("out"))[0] == 0
    other = place.root / "other"
    for split in ("train", "test"):
        shutil.copytree(place.data / split, other / split)
        (other / split / "blue").rename(other / split / "yellow")
    refused(capsys, ["eval", str(place.root / "out"), "--data", str(other), "--trust"], "the artifact's classes, 3 (")
    shutil.rmtree(other / "test" / "yellow")
    order = place.root / "order.txt"
    order.write_text("green\nred\nyellow\n")
    refused(capsys, place.prune("o", "--labels", str(order), data=str(other)), "different classes")


def test_noncritical_needs_a_finished_walk(place, capsys):
    assert ran(capsys, *place.prune("out", target="params=0.05"))[0] == 0
    refused(
        capsys,
        ["apply", str(place.root / "out"), "--target", "noncritical", "--out", str(place.root / "n"), "--trust"],
        "tested",
        "--resume",
    )


def test_disagreement_writes_nothing(place, capsys, monkeypatch):
    from cswap.methods import path
    from cswap.structure.check import Agreement

    monkeypatch.setattr(path, "agreement", lambda *_: Agreement(1.0, 1e-4, 1.0, "output", True))
    refused(capsys, place.prune("out"), "max |masked − pruned| = 1", "nothing was written", status=1)
    assert not (place.root / "out" / "manifest.json").exists()
    assert not (place.root / "out" / "model.safetensors").exists()
