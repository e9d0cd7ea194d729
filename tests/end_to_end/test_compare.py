"""`cswap compare`: table, JSON and page; resumed; refused in one line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import cswap
from cswap.artifacts.files import write_json
from cswap.cli.app import main
from cswap.compare import measure
from cswap.compare.clock import Clock, timed
from cswap.compare.workers import _that_travels
from cswap.data.models import ModelSpec
from cswap.errors import InputError, RunError
from cswap.evaluate.curve import sauce
from cswap.methods.options import Options
from cswap.pipeline import DataChoice, Source


def _arguments(place, *more: str) -> list[str]:
    return [
        "compare", "--model", f"{place.factory}:colours", "--weights", str(place.weights), "--data", str(place.data), "--image-size",
        "8", "--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5", "--per-class", "6", "--out", str(place.root / "c"), "--quiet", *more,
    ]  # fmt: skip


METHODS = "cswap,cbp,greedy,magnitude,magnitude:global,random"


def test_every_method_on_one_curve(place, capsys):
    status = main(
        _arguments(
            place,
            "--methods",
            METHODS,
            "--ratios",
            "0,0.2,0.5,0.8",
            "--seeds",
            "0,1",
            "--recover",
            "bn,lstsq",
            "--json",
        )
    )
    out, err = capsys.readouterr()
    assert status == 0, err
    result = json.loads(out)
    assert result == json.loads((place.root / "c" / "compare.json").read_text())
    assert list(result["methods"]) == METHODS.split(",")
    for name, method in result["methods"].items():
        assert list(method["by_seed"]) == ["0", "1"]
        for run in method["by_seed"].values():
            points = run["points"]
            assert points[0]["quality"] == result["unpruned"]["quality"]
            for kind in ("params", "macs", "units"):
                asked = [(p["asked"][kind], p["ratio"][kind]) for p in points if kind in p["asked"]]
                most = points[-1]["ratio"][kind] if kind == "units" else 0.8
                assert [a for a, _ in asked] == [a for a in (0, 0.2, 0.5, 0.8) if a <= most], name
                assert all(r >= a - 1e-9 for a, r in asked)
            assert all(len(p["quality"]["by_class"]) == 3 and p["latency_ms"]["64"] > 0 for p in points)
            curve = [(p["ratio"]["params"], p["quality"]["accuracy"]) for p in points if "params" in p["asked"]]
            expected = sauce([x for x, _ in curve], [y for _, y in curve], points[0]["quality"]["accuracy"])
            assert run["sauce"]["none"] == pytest.approx(expected)
            assert set(run["sauce"]) == {"none", "bn", "lstsq"}
            assert all(0 <= p["recovered"]["lstsq"]["p_worse"] <= 1 for p in points)
            assert points[0]["recovered"]["lstsq"]["quality"] == points[0]["quality"]  # nothing was removed
            assert run["seconds"] > 0
        rows = method["curves"]["params"]
        assert [r["seeds"] for r in rows] == [2] * len(rows)
        assert rows[0]["quality"]["none"]["std"] == 0
    params = [p["params"] for p in result["methods"]["cswap"]["by_seed"]["0"]["points"]]
    assert params == sorted(params, reverse=True)
    page = (place.root / "c" / "compare.html").read_text()
    assert "cbp" in page
    assert "https://" not in page.split("<body>")[0]


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_method_that_cannot_say_anything_is_left_out_with_its_reason(place, capsys, jobs):
    pytest.importorskip("zennit", reason="zennit is not installed")
    wavy = place.root / "wavy.py"
    wavy.write_text(
        "import torch\nfrom torch import nn\n\n\nclass Wavy(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        torch.manual_seed(0)\n        self.a, self.b = nn.Linear(192, 12), nn.Linear(12, 3)\n"
        "        for n in range(3):  # three units say how much there is of each colour\n            self.a.weight.data[n] = 0\n"
        "            self.a.weight.data[n, 64 * n : 64 * n + 64] = 1 / 64\n            self.b.weight.data[n, n] = 5\n\n"
        "    def forward(self, x):\n        return self.b(torch.sin(self.a(x.flatten(1))))\n"
    )
    asked = _arguments(place, "--ratios", "0,0.5", "--ratio-in", "units", "--no-latency", "--jobs", jobs)
    asked[asked.index("--model") + 1] = f"{wavy}:Wavy"
    asked[asked.index("--weights") : asked.index("--weights") + 2] = []
    assert main([*asked, "--methods", "magnitude,lrp,random"]) == 0
    out = capsys.readouterr().out
    assert "lrp is left out: method lrp: no rule hands" in " ".join(out.split())
    result = json.loads((place.root / "c" / "compare.json").read_text())
    assert list(result["methods"]) == ["magnitude", "random"]
    assert list(result["refused"]) == ["lrp"]
    assert "sin" in result["refused"]["lrp"]
    assert "left out" in (place.root / "c" / "compare.html").read_text()
    assert main([*asked, "--methods", "magnitude,lrp", "--resume"]) == 0
    capsys.readouterr()
    assert main([*asked, "--methods", "lrp", "--force"]) == 2  # nothing is left to compare
    assert "no rule hands" in capsys.readouterr().err


def test_it_goes_on_and_refuses_another_comparison(place, capsys):
    few = ["--ratios", "0,0.5", "--ratio-in", "params"]
    assert main(_arguments(place, "--methods", "cswap,magnitude", *few)) == 0
    first = json.loads((place.root / "c" / "compare.json").read_text())
    (place.root / "c" / "magnitude.0.json").unlink()  # as a run interrupted between the two leaves it
    assert len(list((place.root / "c" / "points").glob("*/magnitude.0.*"))) == 2
    capsys.readouterr()
    assert main(_arguments(place, "--methods", "cswap,magnitude,random", "--resume", *few)) == 0
    again = json.loads((place.root / "c" / "compare.json").read_text())
    assert again["methods"]["cswap"] == first["methods"]["cswap"]
    assert [p["quality"] for p in again["methods"]["magnitude"]["by_seed"]["0"]["points"]] == [
        p["quality"] for p in first["methods"]["magnitude"]["by_seed"]["0"]["points"]
    ]
    assert "random" in again["methods"]
    added = ["--methods", "magnitude", "--resume", *few, "--seeds", "1,0"]  # the first seed is another
    assert main(_arguments(place, *added)) == 0
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
        assert main(_arguments(place, *more)) == 2
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
    assert main(_arguments(place, *few, "--eval-samples", "8", "--recover-per-class", "4")) == 0
    first = json.loads((place.root / "c" / "compare.json").read_text())
    paths = {f: (f.read_bytes(), f.stat().st_mtime_ns) for f in (place.root / "c" / "paths").glob("*/path.jsonl")}
    assert main(_arguments(place, *few, "--resume", "--recover-per-class", "8")) == 0
    assert paths == {f: (f.read_bytes(), f.stat().st_mtime_ns) for f in paths}
    later = json.loads((place.root / "c" / "compare.json").read_text())
    assert (first["held_out_samples"], first["recover_per_class"]) == (8, 4)
    assert (later["held_out_samples"], later["recover_per_class"]) == (15, 8)
    (place.root / "c").rename(place.root / "resumed")
    assert main(_arguments(place, *few, "--recover-per-class", "8")) == 0
    fresh = json.loads((place.root / "c" / "compare.json").read_text())

    def qualities(result):
        points = result["methods"]["cswap"]["by_seed"]["0"]["points"]
        return [(p["quality"], p["recovered"]["lstsq"]["raw_quality"]) for p in points]

    assert qualities(later) == qualities(fresh) != qualities(first)
    assert main(_arguments(place, *few, "--resume", "--eval-samples", "8", "--recover-per-class", "4")) == 0
    assert qualities(json.loads((place.root / "c" / "compare.json").read_text())) == qualities(first)


def test_data_that_change_in_their_middle_are_other_data(place, capsys):
    """Neither the first nor the last image: figures of old images must not be told of new ones."""
    few = ["--methods", "magnitude", "--ratios", "0,0.2", "--ratio-in", "params", "--no-latency"]
    assert main(_arguments(place, *few)) == 0
    before = json.loads((place.root / "c" / "compare.json").read_text())
    for file in sorted((place.data / "test" / "green").iterdir()):
        file.write_bytes((place.data / "test" / "red" / file.name).read_bytes())
    assert main(_arguments(place, *few, "--resume")) == 0
    after = json.loads((place.root / "c" / "compare.json").read_text())
    shown = [r["unpruned"]["quality"]["by_class"][1] for r in (before, after)]
    assert shown == [1.0, 0.0]
    points = [r["methods"]["magnitude"]["by_seed"]["0"]["points"][-1]["quality"] for r in (before, after)]
    assert points[0] != points[1]
    for file in sorted((place.data / "train" / "green").iterdir()):
        file.write_bytes((place.data / "train" / "red" / file.name).read_bytes())
    capsys.readouterr()
    assert main(_arguments(place, *few, "--resume")) == 2
    assert "resume: data was" in capsys.readouterr().err


FEW = ("--methods", "cbp,random", "--ratios", "0,0.5,0.8", "--ratio-in", "units", "--no-latency")


def test_a_step_that_answers_two_ratios_is_a_point_of_each(place, capsys):
    """Two units of a small network are far apart: no ratio may be lost between them."""
    ratios = [0.0, 0.3, 0.31, 0.32, 0.33, 0.34, 0.35]
    asked = [
        "--methods",
        "random",
        "--ratios",
        ",".join(map(str, ratios)),
        "--ratio-in",
        "units",
        "--no-latency",
        "--json",
    ]
    assert main(_arguments(place, *asked)) == 0
    result = json.loads(capsys.readouterr().out)["methods"]["random"]
    points = result["by_seed"]["0"]["points"]
    assert [p["asked"]["units"] for p in points] == ratios
    assert len({p["steps"] for p in points}) < len(ratios)
    assert [r["asked"] for r in result["curves"]["units"]] == ratios


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
        assert main(_arguments(place, *asked)) == 1
    assert (place.root / "c" / "differences.0.safetensors").exists()
    capsys.readouterr()
    assert main(_arguments(place, *asked, "--resume")) == 0
    assert json.loads(capsys.readouterr().out)["methods"]["cbp"]["seconds"] >= 1.5
    clock = Clock(place.root / "x.seconds.json")
    clock.keep_seconds()
    write_json(place.root / "x.seconds.json", {"seconds": 100.0})
    with timed(place.root / "x.seconds.json", going_on=True) as clock:
        assert 100 < clock.seconds < 101
    with timed(place.root / "x.seconds.json", going_on=False) as clock:
        assert clock.seconds < 1


def _held(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def _told(capsys, arguments: list[str], status: int, *words: str) -> None:
    capsys.readouterr()
    assert main(arguments) == status
    err = capsys.readouterr().err
    assert len(err.splitlines()) == (status != 0), err
    assert all(w in err for w in words), err


def _apart_from_time(result: dict) -> dict:
    """A comparison without what differs from run to run."""
    timed = {"seconds", "latency_ms", "ms_1", "ms_64", "jobs"}

    def kept(value):
        if isinstance(value, dict):
            return {k: kept(v) for k, v in value.items() if k not in timed}
        return [kept(v) for v in value] if isinstance(value, list) else value

    return kept(result)


@pytest.fixture
def one_thread():
    """Sums in the same order, however many processes share the threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_processes_find_what_one_process_finds(place, capsys):
    asked = [
        "--methods",
        "cswap,cbp,cbp:global:macs,magnitude",
        "--ratios",
        "0,0.2,0.5",
        "--recover",
        "bn",
        "--json",
    ]
    assert main(_arguments(place, *asked)) == 0
    alone = json.loads(capsys.readouterr().out)
    assert main(_arguments(place, *asked, "--jobs", "3", "--force")) == 0
    shared = json.loads(capsys.readouterr().out)
    assert shared["jobs"] == 3
    assert _apart_from_time(shared) == _apart_from_time(alone)
    assert all(p["latency_ms"]["1"] > 0 for p in shared["methods"]["cbp"]["by_seed"]["0"]["points"])
    _told(capsys, _arguments(place, *asked[:-1], "--jobs", "0", "--force"), 2, "jobs", "at least 1")


def test_processes_say_nothing_of_their_own(place):
    asked = _arguments(place, "--methods", "cbp,magnitude,random", "--ratios", "0,0.5", "--no-latency", "--jobs", "3")
    run = subprocess.run([sys.executable, "-m", "cswap", *asked], capture_output=True, check=True)
    assert run.stderr == b""


def test_what_differs_from_process_to_process_is_refused(place, capsys):
    lines = [
        "import os, torch", "from torch.utils.data import TensorDataset", "def data():",
        "    made = torch.Generator().manual_seed(int.from_bytes(os.urandom(4), 'big'))",
        "    labels = torch.arange(60) % 3",
        "    inputs = torch.rand(60, 3, 8, 8, generator=made) * 0.1",
        "    inputs[torch.arange(60), labels] += 0.9",
        "    return TensorDataset(inputs * 2 - 1, labels), TensorDataset(inputs * 2 - 1, labels)",
    ]  # fmt: skip
    (place.root / "unseeded.py").write_text("\n".join(lines))
    asked = ["compare", "--model", f"{place.factory}:colours", "--weights", str(place.weights), "--per-class", "6",
             "--data", f"{place.root / 'unseeded.py'}:data", "--methods", "magnitude,random", "--ratios", "0,0.5",
             "--no-latency", "--quiet", "--out", str(place.root / "u")]  # fmt: skip
    _told(capsys, [*asked, "--jobs", "2"], 2, "in every process", "seed", "--jobs 1")
    _told(capsys, [*asked, "--resume"], 2, "resume: data was")


class _Odd(Exception):
    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} and {second}")


def test_errors_that_cannot_travel_say_what_they_are():
    held = OSError("the disk")
    held.handle = Path(os.devnull).open()  # noqa: SIM115 — an exception that holds an open file
    for error, said in ((_Odd("this", "that"), "_Odd: this and that"), (held, "OSError: the disk")):
        error.add_note("where it was")
        found = _that_travels(error)
        assert (type(found), str(found)) == (RunError, said)
        assert found.__notes__ == ["where it was"]
    held.handle.close()
    error = InputError("one line")
    assert _that_travels(error) is error


def test_a_script_without_a_main_guard_is_told_so(place):
    script = place.root / "script.py"
    script.write_text(
        "import cswap\nfrom pathlib import Path\nfrom cswap.data.models import ModelSpec\n"
        "from cswap.pipeline import DataChoice, Source\n"
        f"cswap.compare_methods(cswap.CompareJob(Source(ModelSpec.parse({str(place.factory) + ':colours'!r}), "
        f"Path({str(place.weights)!r})), DataChoice({str(place.data)!r}, per_class=6, image_size=8, mean='0.5', std='0.5'), "
        f"Path({str(place.root / 'c')!r}), ('magnitude', 'random'), latency=False, jobs=2))\n"
    )
    run = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert "__main__" in run.stderr.strip().splitlines()[-1]


def _worker_of(pid: int) -> int:
    """The first process that measures for this one."""
    while True:
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                return int(child)
        time.sleep(0.05)


def test_a_process_that_dies_is_one_line_and_nothing_is_lost(place, capsys):
    asked = _arguments(place, "--methods", "cswap,greedy", "--ratios", "0,0.5", "--no-latency", "--jobs", "2")
    run = subprocess.Popen([sys.executable, "-m", "cswap", *asked], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    os.kill(_worker_of(run.pid), signal.SIGKILL)
    said = run.communicate()[1].decode().strip().splitlines()
    assert run.returncode == 1, said
    assert "jobs: a process ended with signal 9" in said[-1] or "died (signal 9)" in said[-1]
    assert not any("Traceback" in line for line in said)
    run = subprocess.Popen([sys.executable, "-m", "cswap", *asked, "--resume"])
    worker = _worker_of(run.pid)
    run.kill()  # its processes must not go on writing beside a resumed run
    run.wait()
    until = time.monotonic() + 30
    while Path(f"/proc/{worker}").exists():
        assert time.monotonic() < until, "a process outlived the first one"
        time.sleep(0.05)
    _told(capsys, [*asked, "--resume"], 0)


def test_force_keeps_the_old_comparison_until_the_new_is_whole(place, capsys, monkeypatch):
    out, aside = place.root / "c", place.root / "c.before-force"
    _told(capsys, _arguments(place, *FEW), 0)
    (out / "notes.txt").write_text("mine")
    before = _held(out)
    good = place.weights.read_bytes()
    save_file({k: torch.zeros_like(v) for k, v in load_file(place.weights).items()}, place.weights)
    _told(capsys, _arguments(place, *FEW, "--force"), 2, "chance")
    assert _held(out) == before
    place.weights.write_bytes(good)
    with monkeypatch.context() as m:
        m.setattr("cswap.compare.measure.measure_differences", lambda *_, **__: Path("/nowhere/at all").stat())
        _told(capsys, _arguments(place, *FEW, "--force"), 1, "/nowhere/at all: No such file")
    assert _held(out) == before
    with monkeypatch.context() as m:  # with something done, both stay, and the same command goes on
        m.setattr("cswap.compare.measure.points_of", lambda *_: Path("/nowhere").stat())
        _told(capsys, _arguments(place, *FEW, "--force"), 1, "/nowhere")
    assert _held(aside) == before
    done = (out / "paths" / "cbp.0" / "path.jsonl").read_bytes()
    _told(capsys, _arguments(place, *FEW, "--force", "--resume"), 0)
    assert (out / "paths" / "cbp.0" / "path.jsonl").read_bytes() == done
    assert not aside.exists()
    assert (out / "notes.txt").read_text() == "mine"
    out.rename(aside)  # killed just after it was set aside
    _told(capsys, _arguments(place, *FEW, "--force"), 0)
    assert not aside.exists()
    assert (out / "compare.json").exists()


def test_only_a_comparison_is_replaced(place, capsys):
    out = place.root / "c"
    out.mkdir()
    (out / "run.json").write_text('{"mine": 1}')
    (out / "log.txt").write_text("mine")
    before = _held(out)
    _told(capsys, _arguments(place, *FEW, "--force"), 2, "other files (first log.txt)")
    assert _held(out) == before


@pytest.mark.parametrize("most", [10, 300, 1500, 6000])
def test_a_full_disk_loses_nothing(place, capsys, most):
    """No file may grow beyond so many bytes: one line, and with room again the comparison goes on."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        status = main(_arguments(place, *FEW))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    (line,) = capsys.readouterr().err.splitlines()
    assert status in (1, 2)
    assert "cannot be written (File too large)" in line
    held = (place.root / "c" / "run.json").exists()
    _told(capsys, _arguments(place, *FEW, *(["--resume"] if held else [])), 0)
    assert not list((place.root / "c").rglob("*tmp*"))


def test_a_method_gets_the_options_it_reads_and_what_cannot_be_asked_is_refused_at_once(place):
    def job(*methods: str, **options: object) -> cswap.CompareJob:
        source = Source(ModelSpec.parse(f"{place.factory}:colours"))
        return cswap.CompareJob(source, DataChoice("x"), place.root / "out", methods, options=Options(**options))

    looks = job("cswap", "cbp", "magnitude", effects="sequential", order="reverse")
    settings = {n: looks.settings(n, 3)[1] for n in looks.methods}
    assert {n: (o.effects, o.order, o.seed) for n, o in settings.items()} == {
        "cswap": ("sequential", "reverse", 3), "cbp": ("full", "index", 3), "magnitude": ("full", "index", 3),
    }  # fmt: skip
    assert settings["cbp"].rule.alpha == 0.05 > settings["cswap"].rule.alpha
    for name in ("taylor:raw:params", "taylor:layer:macs"):
        with pytest.raises(InputError, match="goes with --scope global"):
            job("cswap", name)
    with pytest.raises(InputError, match="per: params goes with --scope global, got --scope layer"):
        job("cswap", "taylor", per="params")
    assert job("cswap", "taylor:global", per="params").settings("taylor:global", 0)[1].per == "params"


def test_joint_that_is_not_refitted_is_told_to_be_another_network_than_was_tested(place, capsys):
    asked = ["--methods", "joint,random", "--ratios", "0,0.2", "--ratio-in", "params", "--no-latency"]
    said = "joint: joint tested its sets with the layers behind them compensated"
    assert main(_arguments(place, *asked)) == 0
    assert said in " ".join(capsys.readouterr().out.split())
    assert main(_arguments(place, *asked, "--recover", "lstsq", "--resume")) == 0
    assert said not in " ".join(capsys.readouterr().out.split())


def test_what_a_table_does_not_show_is_said_below_it(place, capsys):
    """Ratios that no prefix reaches, and recoveries that are declined."""
    asked = [
        "--methods",
        "magnitude",
        "--ratios",
        "0,0.2,0.99",
        "--ratio-in",
        "params",
        "--recover",
        "bn",
        "--no-latency",
    ]
    assert main(_arguments(place, *asked)) == 0
    said = " ".join(capsys.readouterr().out.split())
    result = json.loads((place.root / "c" / "compare.json").read_text())
    (run,) = result["methods"]["magnitude"]["by_seed"].values()
    (note,) = (n for n in run["notes"] if "beyond" in n)
    assert note.startswith("params=0.99 lies beyond the end of the path, params=0.")
    assert f"magnitude: {note}" in said
    assert note in (place.root / "c" / "compare.html").read_text()
    rows = {r["asked"]: r for r in result["methods"]["magnitude"]["curves"]["params"]}
    declined = {p["asked"]["params"] for p in run["points"] if p["recovered"]["bn"]["declined"]}
    assert {r for r, row in rows.items() if row["declined"]} == declined
    assert ("°" in said) == bool(declined)


def test_a_path_that_lost_decisions_is_not_measured_as_whole(place, capsys):
    few = ["--methods", "random", "--ratios", "0,0.2,0.8", "--ratio-in", "params", "--no-latency"]
    assert main(_arguments(place, *few)) == 0
    before = json.loads((place.root / "c" / "compare.json").read_text())
    path = place.root / "c" / "paths" / "random.0" / "path.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:5]))
    capsys.readouterr()
    assert main(_arguments(place, *few, "--resume")) == 2
    err = capsys.readouterr().err
    assert "resume: expected the" in err
    assert "got 5" in err
    (place.root / "c" / "random.0.json").unlink()  # as it says
    assert main(_arguments(place, *few, "--resume")) == 0
    after = json.loads((place.root / "c" / "compare.json").read_text())
    assert after["methods"]["random"]["curves"] == before["methods"]["random"]["curves"]
