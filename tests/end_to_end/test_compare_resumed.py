"""`cswap compare` that goes on, is replaced or fails: paths are kept, and nothing is told of other data."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cswap.artifacts.files import write_json
from cswap.cli.app import main
from cswap.compare import measure
from cswap.compare.clock import KeptClock, timed
from tests.end_to_end.commands import FEW, compare_of, told


def test_it_goes_on_and_refuses_another_comparison(place, capsys):
    few = ["--ratios", "0,0.5", "--ratio-in", "params"]
    assert main(compare_of(place, "--methods", "cswap,magnitude", *few)) == 0
    first = json.loads((place.root / "c" / "compare.json").read_text())
    (place.root / "c" / "magnitude.0.json").unlink()  # as a run interrupted between the two leaves it
    assert len(list((place.root / "c" / "points").glob("*/magnitude.0.*"))) == 2
    capsys.readouterr()
    assert main(compare_of(place, "--methods", "cswap,magnitude,random", "--resume", *few)) == 0
    again = json.loads((place.root / "c" / "compare.json").read_text())
    assert again["methods"]["cswap"] == first["methods"]["cswap"]
    assert [p["quality"] for p in again["methods"]["magnitude"]["by_seed"]["0"]["points"]] == [
        p["quality"] for p in first["methods"]["magnitude"]["by_seed"]["0"]["points"]
    ]
    assert "random" in again["methods"]
    added = ["--methods", "magnitude", "--resume", *few, "--seeds", "1,0"]  # the first seed is another
    assert main(compare_of(place, *added)) == 0
    both = json.loads((place.root / "c" / "compare.json").read_text())["methods"]["magnitude"]["by_seed"]
    assert list(both) == ["1", "0"]
    assert both["0"] == again["methods"]["magnitude"]["by_seed"]["0"]
    for more, words in (
        (["--methods", "cswap", *few], "--resume goes on"),
        (["--methods", "cswap", "--resume", "--alpha", "0.1", *few], "resume: alpha was 0.05 and is 0.1 now"),
        (["--methods", "cswap", "--resume", "--per-class", "4", *few], "resume: per-class was 6 and is 4 now"),
        (["--methods", "cswap,nosuch", *few], "nosuch"),
        (["--methods", "magnitude:wide", *few], "NAME:layer"),
        (["--methods", "cswap", "--ratios", "0,2"], "fractions"),
        (["--methods", "cswap", "--ratios", "x"], "numbers separated by commas"),
        (["--methods", "cswap", "--ratio-in", "weight"], "ratio-in"),
        (["--methods", "cswap", "--recover", "nosuch"], "recover: expected"),
        (["--methods", "cswap", "--ratios", "0,0.5", "--recover", "lstsq@0.55"], "ratios that are asked for"),
        (["--methods", "cswap", "--ratio-in", "params@1.5"], "fractions"),
        (["--methods", "cswap", "--seeds", "0,0"], "seeds"),
        (["--methods", "magnitude:global:price"], "NAME:global:params"),
        (["--methods", "magnitude:"], "NAME:layer"),
        (["--methods", "magnitude", "--seeds", "0,1,,2"], "numbers separated by commas"),
    ):
        capsys.readouterr()
        assert main(compare_of(place, *more)) == 2
        err = capsys.readouterr().err
        assert words in err
        assert len(err.strip().splitlines()) == 1


def test_other_held_out_data_are_measured_on_the_paths_that_are_there(place, capsys):
    """A look at a few held-out images first; the analysis is not paid again for all of them, nor for another calibration set to refit on."""
    few = [
        "--methods",
        "cswap,magnitude",
        "--ratios",
        "0,0.8",
        "--ratio-in",
        "params",
        "--no-latency",
        "--recover",
        "none,lstsq",
    ]
    assert main(compare_of(place, *few, "--eval-samples", "8", "--recover-per-class", "4")) == 0
    first = json.loads((place.root / "c" / "compare.json").read_text())
    paths = {f: (f.read_bytes(), f.stat().st_mtime_ns) for f in (place.root / "c" / "paths").glob("*/path.jsonl")}
    assert main(compare_of(place, *few, "--resume", "--recover-per-class", "8")) == 0
    assert paths == {f: (f.read_bytes(), f.stat().st_mtime_ns) for f in paths}
    later = json.loads((place.root / "c" / "compare.json").read_text())
    assert (first["held_out_samples"], first["recover_per_class"]) == (8, 4)
    assert (later["held_out_samples"], later["recover_per_class"]) == (15, 8)
    (place.root / "c").rename(place.root / "resumed")
    assert main(compare_of(place, *few, "--recover-per-class", "8")) == 0
    fresh = json.loads((place.root / "c" / "compare.json").read_text())

    def qualities(result):
        points = result["methods"]["cswap"]["by_seed"]["0"]["points"]
        return [(p["quality"], p["recovered"]["lstsq"]["raw_quality"]) for p in points]

    assert qualities(later) == qualities(fresh) != qualities(first)
    assert main(compare_of(place, *few, "--resume", "--eval-samples", "8", "--recover-per-class", "4")) == 0
    assert qualities(json.loads((place.root / "c" / "compare.json").read_text())) == qualities(first)


def test_data_that_change_in_their_middle_are_other_data(place, capsys):
    """Neither the first nor the last image: figures of old images must not be told of new ones."""
    few = ["--methods", "magnitude", "--ratios", "0,0.2", "--ratio-in", "params", "--no-latency"]
    assert main(compare_of(place, *few)) == 0
    before = json.loads((place.root / "c" / "compare.json").read_text())
    for file in sorted((place.data / "test" / "green").iterdir()):
        file.write_bytes((place.data / "test" / "red" / file.name).read_bytes())
    assert main(compare_of(place, *few, "--resume")) == 0
    after = json.loads((place.root / "c" / "compare.json").read_text())
    shown = [r["unpruned"]["quality"]["by_class"][1] for r in (before, after)]
    assert shown == [1.0, 0.0]
    points = [r["methods"]["magnitude"]["by_seed"]["0"]["points"][-1]["quality"] for r in (before, after)]
    assert points[0] != points[1]
    for file in sorted((place.data / "train" / "green").iterdir()):
        file.write_bytes((place.data / "train" / "red" / file.name).read_bytes())
    capsys.readouterr()
    assert main(compare_of(place, *few, "--resume")) == 2
    assert "resume: data was" in capsys.readouterr().err


def test_seconds_are_those_of_every_run_that_was_interrupted(place, capsys, monkeypatch):
    """The pass that made the differences counts for whoever uses them later, and what an interrupted run spent for the next."""
    asked = ("--methods", "cbp", "--ratios", "0,0.5", "--ratio-in", "units", "--no-latency", "--json")
    real = measure.measure_differences

    def slow(*arguments, **settings):
        time.sleep(1.5)
        return real(*arguments, **settings)

    with monkeypatch.context() as m:
        m.setattr(measure, "measure_differences", slow)
        m.setattr(measure, "open_folder", lambda *_, **__: Path("/nowhere").stat())
        assert main(compare_of(place, *asked)) == 1
    assert (place.root / "c" / "differences.0.safetensors").exists()
    capsys.readouterr()
    assert main(compare_of(place, *asked, "--resume")) == 0
    assert json.loads(capsys.readouterr().out)["methods"]["cbp"]["seconds"] >= 1.5
    clock = KeptClock(place.root / "x.seconds.json")
    clock.keep_seconds()
    write_json(place.root / "x.seconds.json", {"seconds": 100.0})
    with timed(place.root / "x.seconds.json", going_on=True) as clock:
        assert 100 < clock.seconds < 101
    with timed(place.root / "x.seconds.json", going_on=False) as clock:
        assert clock.seconds < 1


def _held(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_force_keeps_the_old_comparison_until_the_new_is_whole(place, capsys, monkeypatch):
    out, aside = place.root / "c", place.root / "c.before-force"
    told(capsys, compare_of(place, *FEW), 0)
    (out / "notes.txt").write_text("mine")
    before = _held(out)
    good = place.weights.read_bytes()
    save_file({k: torch.zeros_like(v) for k, v in load_file(place.weights).items()}, place.weights)
    told(capsys, compare_of(place, *FEW, "--force"), 2, "chance")
    assert _held(out) == before
    place.weights.write_bytes(good)
    with monkeypatch.context() as m:
        m.setattr("cswap.compare.measure.measure_differences", lambda *_, **__: Path("/nowhere/at all").stat())
        told(capsys, compare_of(place, *FEW, "--force"), 1, "/nowhere/at all: No such file")
    assert _held(out) == before
    with monkeypatch.context() as m:  # with something done, both stay, and the same command goes on
        m.setattr("cswap.compare.measure.points_of", lambda *_: Path("/nowhere").stat())
        told(capsys, compare_of(place, *FEW, "--force"), 1, "/nowhere")
    assert _held(aside) == before
    done = (out / "paths" / "cbp.0" / "path.jsonl").read_bytes()
    told(capsys, compare_of(place, *FEW, "--force", "--resume"), 0)
    assert (out / "paths" / "cbp.0" / "path.jsonl").read_bytes() == done
    assert not aside.exists()
    assert (out / "notes.txt").read_text() == "mine"
    out.rename(aside)  # killed just after it was set aside
    told(capsys, compare_of(place, *FEW, "--force"), 0)
    assert not aside.exists()
    assert (out / "compare.json").exists()


def test_only_a_comparison_is_replaced(place, capsys):
    out = place.root / "c"
    out.mkdir()
    (out / "run.json").write_text('{"mine": 1}')
    (out / "log.txt").write_text("mine")
    before = _held(out)
    told(capsys, compare_of(place, *FEW, "--force"), 2, "other files (first log.txt)")
    assert _held(out) == before


@pytest.mark.parametrize("most", [10, 300, 1500, 6000])
def test_a_full_disk_loses_nothing(place, capsys, most):
    """No file may grow beyond so many bytes: one line, and with room again the comparison goes on."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        status = main(compare_of(place, *FEW))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    (line,) = capsys.readouterr().err.splitlines()
    assert status in (1, 2)
    assert "cannot be written (File too large)" in line
    held = (place.root / "c" / "run.json").exists()
    told(capsys, compare_of(place, *FEW, *(["--resume"] if held else [])), 0)
    assert not list((place.root / "c").rglob("*tmp*"))


def test_a_path_that_lost_decisions_is_not_measured_as_whole(place, capsys):
    few = ["--methods", "random", "--ratios", "0,0.2,0.8", "--ratio-in", "params", "--no-latency"]
    assert main(compare_of(place, *few)) == 0
    before = json.loads((place.root / "c" / "compare.json").read_text())
    path = place.root / "c" / "paths" / "random.0" / "path.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:5]))
    capsys.readouterr()
    assert main(compare_of(place, *few, "--resume")) == 2
    err = capsys.readouterr().err
    assert "resume: expected the" in err
    assert "got 5" in err
    (place.root / "c" / "random.0.json").unlink()  # as it says
    assert main(compare_of(place, *few, "--resume")) == 0
    after = json.loads((place.root / "c" / "compare.json").read_text())
    assert after["methods"]["random"]["curves"] == before["methods"]["random"]["curves"]


def test_an_option_that_an_earlier_version_did_not_know_is_told(place, capsys):
    few = ["--methods", "random", "--ratios", "0,0.5", "--ratio-in", "params"]
    assert main(compare_of(place, *few)) == 0
    file = place.root / "c" / "run.json"
    run = json.loads(file.read_text())
    del run["options"]["price"]
    write_json(file, run)
    capsys.readouterr()
    assert main(compare_of(place, *few, "--resume")) == 2
    assert 'resume: price was unknown to that version and is "change" now' in capsys.readouterr().err


def test_a_run_of_before_an_option_whose_default_is_as_before_goes_on(place):
    few = ["--methods", "random", "--ratios", "0,0.5", "--ratio-in", "params"]
    assert main(compare_of(place, *few)) == 0
    for file in (place.root / "c" / "run.json", place.root / "c" / "paths" / "random.0" / "run.json"):
        run = json.loads(file.read_text())
        del run["options"]["folds"]
        write_json(file, run)
    (place.root / "c" / "random.0.json").unlink()  # so that the path's own folder is asked too
    assert main(compare_of(place, *few, "--resume")) == 0
    assert main(compare_of(place, *few, "--resume", "--folds", "2")) == 2
