"""`joint` tests whole groups before it decides: what was tested is kept, gone on with, and shared by what allocates it otherwise."""

from __future__ import annotations

import json

import pytest

from cswap.artifacts.files import TESTED
from cswap.artifacts.journal import Journal, _signed
from cswap.cli.app import main
from cswap.methods import joint as joint_method
from tests.end_to_end.commands import compare_of

JOINT = (
    "--method",
    "joint",
    "--per",
    "params",
    "--margins",
    "0.05,0.2",
    "--target",
    "params=0.4",
    "--recover",
    "lstsq",
)

GROUPS = 2  # of the network of `place`


@pytest.fixture
def struck(monkeypatch):
    """Ends the process's work after so many groups; returns what counts the groups that are tested from then on."""
    tested: list[str] = []
    kept, measure = Journal.tested, joint_method._measured

    def after(groups: int) -> list[str]:
        def keep(self, group, found, done, of):
            kept(self, group, found, done, of)
            if done == groups:
                raise KeyboardInterrupt

        def counted(engine, base, group, *more, **how):
            tested.append(group.name)
            return measure(engine, base, group, *more, **how)

        monkeypatch.setattr(joint_method, "_measured", counted)
        monkeypatch.setattr(Journal, "tested", keep if groups else kept)
        tested.clear()
        return tested

    return after


def test_an_interrupted_joint_goes_on_with_the_groups_that_are_left(place, struck, capsys):
    assert main(place.prune("whole", *JOINT)) == 0
    struck(1)
    assert main(place.prune("out", *JOINT)) == 130
    out = place.root / "out"
    assert len((out / TESTED).read_text().splitlines()) == 1
    assert not (out / "path.jsonl").read_bytes()
    with (out / TESTED).open("a") as lines:
        lines.write('{"group": "torn')  # as a kill in the middle of a line leaves it
    left = struck(0)
    assert main(place.prune("out", *JOINT)) == 2  # nothing is lost without being asked for
    assert "--resume goes on" in capsys.readouterr().err
    assert main(place.prune("out", *JOINT, "--resume")) == 0
    assert len(left) == GROUPS - 1
    assert (out / "path.jsonl").read_bytes() == (place.root / "whole" / "path.jsonl").read_bytes()
    told = [json.loads((place.root / n / "manifest.json").read_text()) for n in ("whole", "out")]
    assert told[0]["sensitivity"] == told[1]["sensitivity"]
    assert not (out / TESTED).exists()


def test_an_interrupt_after_the_last_test_leaves_nothing_to_test(place, struck):
    assert main(place.prune("whole", *JOINT)) == 0
    struck(GROUPS)
    assert main(place.prune("out", *JOINT)) == 130
    left = struck(0)
    assert main(place.prune("out", *JOINT, "--resume")) == 0
    assert left == []
    assert (place.root / "out" / "path.jsonl").read_bytes() == (place.root / "whole" / "path.jsonl").read_bytes()


def test_a_whole_artifact_is_taken_further_without_testing_again(place, struck, capsys):
    further = tuple("params=0.6" if a == "params=0.4" else a for a in JOINT)
    assert main(place.prune("straight", *further)) == 0
    assert main(place.prune("out", *JOINT)) == 0
    out = place.root / "out"
    assert not (out / TESTED).exists()
    left = struck(0)
    assert main(place.prune("out", *further, "--resume")) == 0
    assert left == []
    assert (out / "path.jsonl").read_bytes() == (place.root / "straight" / "path.jsonl").read_bytes()
    told = [json.loads((place.root / n / "manifest.json").read_text()) for n in ("straight", "out")]
    assert told[0]["sensitivity"] == told[1]["sensitivity"]
    summaries = [json.loads((place.root / n / "summary.json").read_text())["notes"] for n in ("straight", "out")]
    assert summaries[0] == summaries[1]

    spoiled = told[1]
    group = next(iter(spoiled["sensitivity"]["groups"].values()))
    group["order"][0] = group["order"][1]
    (out / "manifest.json").write_text(json.dumps(spoiled))
    capsys.readouterr()
    last = tuple("params=0.7" if a == "params=0.4" else a for a in JOINT)
    assert main(place.prune("out", *last, "--resume")) == 2
    assert "the sensitivity of its groups cannot be read" in capsys.readouterr().err


def test_an_interrupt_before_the_first_test_leaves_no_folder(place, monkeypatch):
    def interrupted(*_args, **_more):
        raise KeyboardInterrupt

    monkeypatch.setattr(joint_method, "_measured", interrupted)
    assert main(place.prune("out", *JOINT)) == 130
    assert not (place.root / "out").exists()


def test_spoiled_tests_are_refused_and_nothing_is_lost(place, struck, capsys):
    struck(GROUPS)
    assert main(place.prune("out", *JOINT)) == 130
    file = place.root / "out" / TESTED
    whole = file.read_text()
    first, second = whole.splitlines(keepends=True)
    for spoiled in (
        first.replace('"units": ', '"units": 1', 1) + second,  # a digit more
        '{"group": "nosuch", "order": []}\n' + second,
        "[]\n" + second,
        second + "{}\n",
    ):
        file.write_text(spoiled)
        capsys.readouterr()
        assert main(place.prune("out", *JOINT, "--resume")) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert "tested.jsonl, line" in line
        assert file.read_text() == spoiled
    file.write_text(_signed({**json.loads(first), "probes": [{"units": 1}]}) + second)
    assert main(place.prune("out", *JOINT, "--resume")) == 2
    assert "resume: the tests of " in capsys.readouterr().err
    struck(0)
    file.write_text(whole)
    assert main(place.prune("out", *JOINT, "--resume")) == 0


def test_compared_joints_that_differ_in_price_alone_are_tested_once(place, struck):
    few = ["--ratios", "0,0.5", "--ratio-in", "params", "--margins", "0.05,0.2"]
    alone = {}
    for name in ("joint:global:params", "joint:global:macs", "joint"):
        assert main(compare_of(place, "--methods", name, "--force", *few)) == 0
        alone |= json.loads((place.root / "c" / "compare.json").read_text())["methods"]
    tested = struck(0)
    both = "joint:global:params,joint:global:macs,joint"
    assert main(compare_of(place, "--methods", both, "--force", *few)) == 0
    assert len(tested) == 2 * GROUPS  # once by price, and once by margin, which asks for no price of the rest
    found = json.loads((place.root / "c" / "compare.json").read_text())["methods"]
    for name, method in alone.items():
        mine, its = found[name]["by_seed"]["0"], method["by_seed"]["0"]
        assert [p["quality"] for p in mine["points"]] == [p["quality"] for p in its["points"]]
        assert mine["steps"] == its["steps"]
    seconds = [found[n]["by_seed"]["0"]["seconds"] for n in ("joint:global:params", "joint:global:macs")]
    lines = (place.root / "c" / "paths" / "joint-global-macs.0" / TESTED).read_text().splitlines()
    assert all(json.loads(line)["shared"] for line in lines)
    assert seconds[1] >= sum(json.loads(line)["seconds"] for line in lines) > 0


STAGED = (*JOINT, "--stages", "0.15,0.3", "--price", "outputs")


def test_stages_are_gone_on_with_from_the_group_or_the_trial_that_was_next(place, struck):
    assert main(place.prune("whole", *STAGED)) == 0
    straight = json.loads((place.root / "whole" / "manifest.json").read_text())["sensitivity"]
    assert [s["at"] for s in straight["stages"]] == [0.15, 0.3]
    tests = 3 * GROUPS + 2  # and two trials
    for done in range(1, tests):
        kept, told = Journal.tested, []

        def keep(self, group, found, at, of, kept=kept, told=told, done=done):
            kept(self, group, found, at, of)
            told.append(group)
            if len(told) == done:
                raise KeyboardInterrupt

        left = struck(0)
        Journal.tested = keep  # type: ignore[method-assign]
        out = f"out{done}"
        try:
            assert main(place.prune(out, *STAGED)) == 130
        finally:
            Journal.tested = kept  # type: ignore[method-assign]
        assert len((place.root / out / TESTED).read_text().splitlines()) == done
        left.clear()
        assert main(place.prune(out, *STAGED, "--resume")) == 0
        assert len(left) == 3 * GROUPS - sum(not t.startswith("#") for t in told)
        assert (place.root / out / "path.jsonl").read_bytes() == (place.root / "whole" / "path.jsonl").read_bytes()
        again = json.loads((place.root / out / "manifest.json").read_text())
        assert again["sensitivity"] == straight


def test_a_whole_artifact_in_stages_is_taken_further(place, struck):
    further = tuple("params=0.6" if a == "params=0.4" else a for a in STAGED)
    assert main(place.prune("straight", *further)) == 0
    assert main(place.prune("out", *STAGED)) == 0
    left = struck(0)
    assert main(place.prune("out", *further, "--resume")) == 0
    assert left == []
    assert (place.root / "out" / "path.jsonl").read_bytes() == (place.root / "straight" / "path.jsonl").read_bytes()
    told = [json.loads((place.root / n / "manifest.json").read_text()) for n in ("straight", "out")]
    assert told[0]["sensitivity"] == told[1]["sensitivity"]
    assert main(place.prune("out", *further, "--recover-per-class", "3", "--resume")) == 2


def test_what_joint_compares_in_stages_shares_the_tests_of_the_original(place, struck, capsys):
    names = "joint:global:params:staged,joint:global:macs:staged"
    few = ["--methods", names, "--ratios", "0,0.4", "--ratio-in", "params", "--recover", "lstsq"]
    tested = struck(0)
    assert main(compare_of(place, *few)) == 0
    root = place.root / "c" / "paths"
    own = [
        [json.loads(line) for line in (root / f"joint-global-{k}-staged.0" / TESTED).read_text().splitlines()]
        for k in ("params", "macs")
    ]
    assert [sum("shared" in t for t in found) for found in own] == [0, GROUPS]
    assert len(tested) > 2 * GROUPS
    told = json.loads((place.root / "c" / "compare.json").read_text())["methods"]
    assert set(told) == set(names.split(","))
    capsys.readouterr()
    assert main(compare_of(place, "--methods", "obs:global:params:staged", "--out", str(place.root / "d"))) == 2
    assert "of joint with :staged behind it" in capsys.readouterr().err
