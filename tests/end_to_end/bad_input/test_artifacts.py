"""Artifacts that were spoiled, cut or forged, and commands that read or write them."""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from cswap.cli.app import main
from tests.end_to_end.bad_input.conftest import held, refused


def _manifest(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def spoil(art: Path) -> None:
        file = art / "manifest.json"
        data = json.loads(file.read_text())
        data = change(data) or data
        file.write_text(json.dumps(data))

    return spoil


def _set(*path: Any, to: Any) -> Callable[[Path], None]:
    def change(data: dict[str, Any]) -> None:
        for key in path[:-1]:
            data = data[key]
        data[path[-1]] = to

    return _manifest(change)


def _without(*path: str) -> Callable[[Path], None]:
    def change(data: dict[str, Any]) -> None:
        for key in path[:-1]:
            data = data[key]
        del data[path[-1]]

    return _manifest(change)


def _raw(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda art: (art / name).write_bytes(content)  # type: ignore[return-value]


def _kept(change: Callable[[list[int]], Any]) -> Callable[[Path], None]:
    def apply(data: dict[str, Any]) -> None:
        indices = data["kept"]["a.weight"]["0"]
        data["kept"]["a.weight"]["0"] = change(indices)

    return _manifest(apply)


ARTIFACTS: dict[str, Callable[[Path], Any]] = {
    "manifest-gone": lambda art: (art / "manifest.json").unlink(),
    "manifest-empty": _raw("manifest.json", b""),
    "manifest-text": _raw("manifest.json", b"hello"),
    "manifest-list": _raw("manifest.json", b"[]"),
    "manifest-null": _raw("manifest.json", b"null"),
    "manifest-cut": lambda art: (art / "manifest.json").write_bytes((art / "manifest.json").read_bytes()[:200]),
    "manifest-not-utf8": _raw("manifest.json", b"\xff\xfe{}"),
    "manifest-deep": _raw("manifest.json", b"[" * 100_000),
    "schema-gone": _without("schema"),
    "schema-unknown": _set("schema", to="cswap-artifact/99"),
    "schema-number": _set("schema", to=7),
    "weights-elsewhere": _set("weights", "file", to="../net.safetensors"),
    "weights-absolute": _set("weights", "file", to="/etc/passwd"),
    "weights-backslash": _set("weights", "file", to="..\\net.safetensors"),
    "weights-nul": _set("weights", "file", to="a\0b"),
    "weights-number": _set("weights", "file", to=3),
    "weights-gone": _without("weights"),
    "weights-hash": _set("weights", "sha256", to="0" * 64),
    "weights-hash-gone": _without("weights", "sha256"),
    "weights-file-gone": lambda art: (art / "model.safetensors").unlink(),
    "weights-file-empty": _raw("model.safetensors", b""),
    "weights-link": lambda art: ((art / "model.safetensors").rename(art.parent / "m"), (art / "model.safetensors").symlink_to(art.parent / "m")),
    "kept-gone": _without("kept"),
    "kept-list": _set("kept", to=[]),
    "kept-text": _set("kept", "a.weight", to="all"),
    "kept-duplicate": _kept(lambda i: [i[0], *i]),
    "kept-descending": _kept(lambda i: i[::-1]),
    "kept-negative": _kept(lambda i: [-1, *i]),
    "kept-beyond": _kept(lambda i: [*i[:-1], 10**6]),
    "kept-huge": _kept(lambda i: [10**30]),
    "kept-floats": _kept(lambda i: [x + 0.5 for x in i]),
    "kept-words": _kept(lambda i: ["a"]),
    "kept-nested": _kept(lambda i: [i]),
    "kept-empty": _kept(lambda i: []),
    "kept-another": _kept(lambda i: i[:-1]),
    "kept-others": _kept(lambda i: sorted({*i[1:], next(j for j in range(i[-1] + 2) if j not in i)})),
    "kept-one-dimension-less": _without("kept", "b.weight", "1"),
    "kept-unknown-tensor": _set("kept", "nosuch.weight", to={"0": [0]}),
    "kept-unknown-dimension": _set("kept", "a.weight", "9", to=[0]),
    "structure-gone": _without("structure"),
    "structure-text": _set("structure", to="big"),
    "classes-gone": _without("classes"),
    "classes-fewer": _set("classes", to=["red"]),
    "options-gone": _without("options"),
    "options-unknown": _set("options", "speed", to=11),
    "options-alpha": _set("options", "alpha", to=7),
    "options-granularity": _set("options", "granularity", to="block:x"),
    "target-wrong": _set("target", to="params=9"),
    "ratio-text": _set("ratio", to="half"),
    "factory-hash": _set("factory", "sha256", to="0" * 64),
    "factory-elsewhere": _set("factory", "file", to="../net.py"),
    "factory-changed": lambda art: (art / "factory.py").write_text("raise SystemExit('it ran')\n"),
    "factory-gone": lambda art: (art / "factory.py").unlink(),
    "factory-link": lambda art: ((art / "factory.py").rename(art.parent / "f.py"), (art / "factory.py").symlink_to(art.parent / "f.py")),
    "factory-no-spec": _without("factory", "spec"),
    "path-gone": lambda art: (art / "path.jsonl").unlink(),
    "path-text": _raw("path.jsonl", b"hello\n"),
    "path-middle": lambda art: (art / "path.jsonl").write_bytes(_torn_middle((art / "path.jsonl").read_bytes())),
    "path-shuffled": lambda art: (art / "path.jsonl").write_bytes(b"".join((art / "path.jsonl").read_bytes().splitlines(keepends=True)[::-1])),
    "path-other-group": lambda art: _line(art, group="nosuch"),
    "path-unit-beyond": lambda art: _line(art, unit=10**6),
    "path-unit-negative": lambda art: _line(art, unit=-1),
    "path-step": lambda art: _line(art, step=77),
    "path-verdict": lambda art: _line(art, verdict="maybe"),
    "path-phase": lambda art: _line(art, phase=7),
    "path-ratio": lambda art: _line(art, ratio={"flops": 1}),
    "path-removed": lambda art: _line(art, removed="false"),
    "path-xi": lambda art: _line(art, xi="much"),
    "path-score": lambda art: _line(art, score=[1]),
    "path-quality": lambda art: _line(art, quality="good"),
    "path-ratio-text": lambda art: _line(art, ratio={"params": "all", "macs": 0, "units": 0}),
    "path-step-inf": lambda art: _line(art, step=float("inf")),
    "path-link": lambda art: ((art / "path.jsonl").rename(art.parent / "p"), (art / "path.jsonl").symlink_to(art.parent / "p")),
    "path-pipe": lambda art: ((art / "path.jsonl").unlink(), os.mkfifo(art / "path.jsonl")),
    "structure-huge": _set("structure", "groups", 0, "slots", 0, "identity", to=10**13),
    "structure-inf": _set("structure", "total_params", to=float("inf")),
    "structure-positions": _set("structure", "groups", 0, "slots", 0, to={"module": "a", "side": "out", "role": "producer", "positions": [10**30], "owner": [0]}),
    "effects-gone": lambda art: (art / "effects.safetensors").unlink(),
    "effects-text": _raw("effects.safetensors", b"hello"),
    "effects-cut": lambda art: (art / "effects.safetensors").write_bytes((art / "effects.safetensors").read_bytes()[:-9]),
    "effects-of-another": lambda art: shutil.copy(art / "model.safetensors", art / "effects.safetensors"),
}  # fmt: skip


def _torn_middle(raw: bytes) -> bytes:
    lines = raw.splitlines(keepends=True)
    return b"".join([lines[0], lines[1][:20] + b"\n", *lines[2:]])


def _line(art: Path, **change: Any) -> None:
    """Changed by somebody who knows of the CRC."""
    lines = (art / "path.jsonl").read_text().splitlines()
    data = {**json.loads(lines[1]), **change}
    del data["crc"]
    text = json.dumps(data)
    lines[1] = f'{text[:-1]}, "crc": "{zlib.crc32(text.encode()):08x}"}}'
    (art / "path.jsonl").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("case", list(ARTIFACTS))
def test_an_artifact(place, capsys, case):
    """`eval` reads everything of it; trust is given, so that what is checked is what is left."""
    art = place.root / "art"
    ARTIFACTS[case](art)
    refused(capsys, place, ["eval", str(art), "--trust", "--quiet"])


@pytest.mark.parametrize("command", ["explain", "report"])
@pytest.mark.parametrize("case", ["path-xi", "path-link", "path-pipe", "structure-huge", "structure-positions"])
def test_whoever_reads_an_artifact_reads_it_alike(place, capsys, command, case):
    art = place.root / "art"
    ARTIFACTS[case](art)
    refused(capsys, place, [command, str(art)])


def test_a_file_that_is_there_is_not_written_over(place, capsys):
    art, file = place.root / "art", place.root / "mine.txt"
    file.write_text("mine")
    refused(capsys, place, ["report", str(art), "--out", str(file)], "out", "--force")
    refused(capsys, place, ["report", str(art), "--out", str(place.root)], "out", "folder")
    refused(
        capsys, place, ["explain", str(art), "--group", "a", "--unit", "0", "--images", str(file)], "images", "--force"
    )
    assert main(["report", str(art), "--out", str(file), "--force"]) == 0
    assert b"<html" in file.read_bytes()


@pytest.mark.parametrize("name", ["manifest.json", "path.jsonl", "effects.safetensors", "model.safetensors"])
def test_a_part_of_an_artifact_is_not_written_over_even_with_force(place, capsys, name):
    art = place.root / "art"
    for asked in (
        ["report", str(art), "--out", str(art / name), "--force"],
        ["explain", str(art), "--group", "a", "--unit", "0", "--images", str(art / name), "--force", "--trust"],
        ["export", str(art), "--format", "pt2", "--out", str(art / name), "--force", "--trust"],
    ):
        refused(capsys, place, asked, "is a part of an artifact")
    refused(capsys, place, ["demo", "--out", str(art), "--force"], "holds an artifact")


def test_an_original_that_its_factory_draws_anew_is_no_baseline(place, capsys):
    """Without a weights file the factory's own weights must be those that were pruned."""
    _set("source", "weights", to=None)(place.root / "art")
    refused(capsys, place, ["eval", str(place.root / "art"), "--trust", "--quiet"], "its weights", "--weights")


def test_what_a_factory_prints_is_no_json(place, capsys):
    place.factory.write_text(place.factory.read_text() + "\n\nprint('hello')\n")
    assert main(["support", "--model", f"{place.factory}:colours", "--image-size", "8", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["groups"]
    assert "hello" in err


@pytest.mark.parametrize("content", ["<html>", "safetensors"])
def test_torch_s_advice_to_load_unsafely_is_not_passed_on(place, capsys, content):
    file = place.weights.with_suffix(".pt")
    file.write_bytes(place.weights.read_bytes() if content == "safetensors" else content.encode())
    arguments = place.prune("out")
    arguments[arguments.index(str(place.weights))] = str(file)
    refused(capsys, place, arguments, "weights", "expected a PyTorch checkpoint", content)


def test_an_artifact_without_its_manifest_is_told_what_it_lacks(place, capsys):
    (place.root / "art" / "manifest.json").unlink()
    refused(capsys, place, ["report", str(place.root / "art")], "has lost its manifest.json")


def test_a_link_in_an_artifact_is_not_written_through(place, capsys):
    art, outside = place.root / "art", place.root / "outside"
    outside.write_text("mine")
    (art / "report.html.tmp").symlink_to(outside)
    assert main(["report", str(art)]) == 0
    capsys.readouterr()
    assert outside.read_text() == "mine"
    assert (art / "report.html").is_file()


def test_half_a_character_in_a_manifest_is_printed_all_the_same(place, capsys):
    art = place.root / "art"
    _set("method", to="\ud800")(art)
    assert main(["report", str(art)]) == 0
    capsys.readouterr()


@pytest.mark.parametrize("command", ["explain", "report", "eval", "apply", "resume"])
@pytest.mark.parametrize("most", [0, 0.5, -30])
def test_a_finished_path_that_was_cut_is_not_the_whole_path(place, capsys, command, most):
    """Torn ends are what an interruption leaves; a finished artifact has none."""
    art = place.root / ("own" if command == "resume" else "art")
    if command == "resume":  # a run is resumed where it was begun
        assert main(place.prune("own")) == 0
    raw = (art / "path.jsonl").read_bytes()
    (art / "path.jsonl").write_bytes(raw[: int(most * len(raw)) if 0 <= most < 1 else most])
    more = {"apply": ["--target", "params=0.1", "--out", str(place.root / "new"), "--trust"], "eval": ["--trust"]}
    asked = place.prune("own", "--resume") if command == "resume" else [command, str(art), *more.get(command, [])]
    refused(capsys, place, asked, "path.jsonl")
    manifest = json.loads((art / "manifest.json").read_text())
    del manifest["path"]  # older artifacts have no hash of it
    (art / "manifest.json").write_text(json.dumps(manifest))
    if most != -30:
        refused(capsys, place, asked, "path.jsonl", "decisions")


@pytest.mark.parametrize("method", ["cswap", "magnitude"])
def test_a_resumed_run_to_a_smaller_target_loses_nothing(place, capsys, method):
    assert main(place.prune("big", "--method", method, target="units=0.5")) == 0
    words = ("resume", "beyond params=0.05", "cswap apply")
    refused(capsys, place, place.prune("big", "--method", method, "--resume", target="params=0.05"), *words)
    again = held(place.root)
    assert main(place.prune("big", "--method", method, "--resume", target="units=0.5")) == 0, (
        "to the same target it is done"
    )
    assert held(place.root)["big/path.jsonl"] == again["big/path.jsonl"]
    assert main(place.prune("big", "--method", method, "--resume", target="units=0.6")) == 0
    capsys.readouterr()


def test_names_in_an_artifact_cannot_steer_the_terminal(place, capsys):
    art = place.root / "art"
    _set("classes", 0, to="\x1b]0;owned\x07\x1b[31mred\u202e\ud800")(art)
    assert main(["explain", str(art), "--class", "0"]) == 0
    out, err = capsys.readouterr()
    assert "owned" in out
    refused_lines = (main(["explain", str(art), "--class", "q"]), capsys.readouterr().err)
    assert refused_lines[0] == 2
    assert "owned" in refused_lines[1]
    for text in (out, err, refused_lines[1]):
        assert not set(text) & set("\x1b\x07\u202e\ud800")


def test_weights_that_were_moved_are_found_by_the_option_that_is_advised(place, capsys):
    art, moved = place.root / "own", place.root / "elsewhere.safetensors"
    assert main(place.prune("own")) == 0
    shutil.copy(place.weights, moved)
    place.weights.unlink()
    asked = ["apply", str(art), "--target", "params=0.1", "--out", str(place.root / "new"), "--trust", "--quiet"]
    refused(capsys, place, asked, "weights", "--weights F")
    other = place.root / "other.safetensors"
    save_file({k: v + 1 for k, v in load_file(moved).items()}, other)
    refused(capsys, place, [*asked, "--weights", str(other)], "weights", "is not the file")
    assert main([*asked, "--weights", str(moved)]) == 0
    capsys.readouterr()


def test_apply_onto_an_artifact_does_not_advise_what_it_has_not(place, capsys):
    art = str(place.root / "art")
    assert main(["apply", art, "--target", "params=0.1", "--out", str(place.root / "new"), "--trust", "--quiet"]) == 0
    asked = ["apply", art, "--target", "params=0.1", "--out", str(place.root / "new"), "--trust", "--quiet"]
    capsys.readouterr()
    assert main(asked) == 2
    told = capsys.readouterr().err
    assert "--force" in told
    assert "--resume" not in told


@pytest.mark.parametrize("command", ["explain", "report"])
def test_whoever_reads_what_was_kept_wants_whole_numbers(place, capsys, command):
    art = place.root / "art"
    ARTIFACTS["kept-floats"](art)
    refused(capsys, place, [command, str(art)])


@pytest.mark.parametrize(
    "name",
    [
        "manifest.json",
        "model.safetensors",
        "path.jsonl",
        "effects.safetensors",
        "factory.py",
        "summary.json",
        "curve.json",
    ],
)
def test_flipped_bits_in_every_file(place, capsys, name):
    """Refused in one line, or without any consequence: never a traceback, never another network."""
    art, x = place.root / "art", torch.randn(4, 3, 8, 8)
    from cswap.artifacts.folder import load
    from cswap.errors import CswapError

    raw, before = (art / name).read_bytes(), load(art, trust=True)(x)
    rng, refusals = np.random.default_rng(len(raw)), 0
    for position in sorted(rng.choice(8 * len(raw), 24, replace=False).tolist()):
        flipped = bytearray(raw)
        flipped[position // 8] ^= 1 << (position % 8)
        (art / name).write_bytes(bytes(flipped))
        capsys.readouterr()
        status = main(["eval", str(art), "--trust", "--quiet", "--json"])
        err = capsys.readouterr().err
        assert status in (0, 2), (position, err)
        assert "Traceback" not in err
        assert "the log is" not in err, (position, err)
        refusals += status == 2
        try:
            after = load(art, trust=True)(x)
        except CswapError:
            continue
        assert torch.equal(before, after), position
    assert refusals or name in ("summary.json", "curve.json")


@pytest.mark.parametrize(
    "command",
    [["apply", "{art}", "--target", "params=0.2", "--out", "{root}/o2"], ["eval", "{art}"], ["explain", "{art}"]],
)
@pytest.mark.parametrize("what", ["gone", "empty", "file", "journal"])
def test_no_artifact_at_all(place, capsys, command, what):
    art = place.root / "art"
    if what in ("gone", "empty", "file"):
        shutil.rmtree(art)
    if what == "empty":
        art.mkdir()
    if what == "file":
        art.write_text("x")
    if what == "journal":
        (art / "manifest.json").unlink()
    refused(capsys, place, [c.format(art=art, root=place.root) for c in command])
