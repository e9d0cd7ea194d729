"""Spoiled artifacts and journals, drawn by hypothesis: refused in one line, or of no consequence.

    python benchmarks/fuzz.py [--minutes 10] [--seed 0]

One file of a small artifact, or of the journal of an interrupted run, is spoiled: bits, ends, bytes, JSON of other types and
sizes, `../` paths, repeated indices, depth, NaN, headers of safetensors. Then `cswap.load`, `cswap eval`, `apply`, `explain`,
`report` or `prune --resume` reads it. Each must end with status 0, or with one line and status 1 or 2; what loads must be the network that was saved; nothing may raise anything else,
take over ten seconds or a GiB more memory, or write outside its folder. One recipe of each kind of answer is kept in
tests/corpus/fuzz.json (with --keep), which tests/test_corpus.py replays. Writes benchmarks/results/fuzz.json.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from _machine import ROOT, machine, write_result
from _mutations import FILES, VALUES, spoil

sys.path.insert(0, str(ROOT))
CORPUS = ROOT / "tests" / "corpus" / "fuzz.json"
ACTIONS = ("load", "eval", "apply", "explain", "report", "resume", "further")
_SECONDS, _MEMORY = 10, 1 << 30
_JOURNAL = ("run.json", "path.jsonl", "effects.part", "state.0.safetensors", "state.1.safetensors")


class Hangs(BaseException):
    """The alarm rang."""


class Ground:
    """A network, its data, a whole artifact `art` and the journal of an interrupted run `half`, made once, copied for each."""

    def __init__(self, root: Path) -> None:
        from tests.end_to_end.conftest import laid_out

        from cswap.artifacts.folder import load
        from cswap.artifacts.journal import Journal
        from cswap.cli.app import main

        self.root, template = root, root / "ground"
        template.mkdir(parents=True)
        self.place = laid_out(template)
        if main(self.place.prune("art")) or main(self.place.prune("more", target="params=0.6")):
            raise SystemExit("the artifact to spoil cannot be made")
        decided, left = Journal.decided, [12]

        def interrupted(self: Any, *args: Any) -> None:
            decided(self, *args)
            left[0] -= 1
            if not left[0]:
                raise KeyboardInterrupt

        Journal.decided = interrupted  # type: ignore[method-assign]
        try:
            if main(self.place.prune("half")) != 130:
                raise SystemExit("the run to resume was not interrupted")
        finally:
            Journal.decided = decided  # type: ignore[method-assign]
        self.paths = {n: (template / n / "path.jsonl").read_bytes() for n in ("art", "more")}
        self.held = {n: {f.name: f.read_bytes() for f in (template / n).iterdir()} for n in ("art", "half")}
        self.inputs = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            self.outputs = load(template / "art", trust=True)(self.inputs)

    def fresh(self, name: str) -> Path:
        """`art` or `half` as it was made, in its own place, and nothing else beside it."""
        folder = self.place.root / name
        for other in (*self.place.root.glob("out*"), *self.place.root.glob("*.html"), folder):
            shutil.rmtree(other) if other.is_dir() and not other.is_symlink() else other.unlink(missing_ok=True)
        folder.mkdir()
        for file, content in self.held[name].items():
            (folder / file).write_bytes(content)
        return folder

    def outside(self, folder: Path) -> dict[str, tuple[int, int]]:
        """Size and time of everything that no command may touch."""
        mine = {folder.name, "out", "out.html"}
        return {
            str(p): (p.stat().st_size, p.stat().st_mtime_ns)
            for top in self.root.rglob("*")
            for p in (top,)
            if p.is_file() and "__pycache__" not in p.parts and not mine & set(p.relative_to(self.root).parts)
        }


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Ten seconds and a GiB more of address space; more raises Hangs, or MemoryError and what PyTorch makes of it."""

    def rang(_signal: int, _frame: Any) -> None:
        raise Hangs

    pages = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGALRM, rang)
    resource.setrlimit(resource.RLIMIT_AS, (pages + _MEMORY, limits[1]))
    signal.alarm(_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.signal(signal.SIGALRM, before)


def call(ground: Ground, action: str, folder: Path) -> tuple[int, str]:
    """Exit status and what was said by one command that reads the folder."""
    from cswap.cli.app import main

    root = ground.place.root
    commands = {
        "eval": ["eval", str(folder), "--trust", "--quiet"],
        "apply": ["apply", str(folder), "--target", "params=0.2", "--out", str(root / "out"), "--trust", "--quiet"],
        "explain": ["explain", str(folder)],
        "report": ["report", str(folder), "--out", str(root / "out.html")],
        "resume": ground.place.prune(folder.name, "--resume"),
        "further": ground.place.prune(folder.name, "--resume", target="params=0.6"),
    }
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        status = main(commands[action])
    return status, said.getvalue()


def answer(ground: Ground, recipe: dict[str, Any]) -> tuple[str, str]:
    """("fine" | "refused" | "skipped" | a fault, what was said) of one recipe."""
    action = recipe["action"]
    folder = ground.fresh("half" if action == "resume" else "art")
    if not spoil(folder, recipe):
        return "skipped", ""
    before = ground.outside(folder)
    try:
        with guarded():
            if action == "load":
                status, said = loaded(ground, folder)
            else:
                status, said = call(ground, action, folder)
    except Hangs:
        return "hangs", ""
    except BaseException as error:  # noqa: BLE001 — anything that comes out is what is looked for
        return "raises", f"{type(error).__name__}: {error}"[:300]
    if ground.outside(folder) != before:
        return "writes outside", said
    found = judged(ground, folder, action, status, said)
    return ("fine", said) if found[0] == "another path" and recipe.get("signed") else found  # a forgery, and no promise


def judged(ground: Ground, folder: Path, action: str, status: int, said: str) -> tuple[str, str]:
    """What a status and what was said come to."""
    lines = [x for x in said.splitlines() if not x.startswith("cswap: warning")]
    if "the run failed (" in said or "Traceback" in said:  # what nobody foresaw
        return "unexpected", said[:400]
    if status in (1, 2):
        return ("refused", lines[0]) if len(lines) == 1 else ("more than one line", said[:400])
    if status != 0:
        return "status", f"{status} {said[:300]}"
    if action == "load" and said:
        return "another network", said
    if action in ("resume", "further"):
        path = (folder / "path.jsonl").read_bytes()
        if path != ground.paths["art" if action == "resume" else "more"]:
            return "another path", said
    return "fine", said


def loaded(ground: Ground, folder: Path) -> tuple[int, str]:
    """`cswap.load` as a status; says so where another network comes."""
    from cswap.artifacts.folder import load
    from cswap.errors import CswapError

    try:
        with torch.no_grad():
            same = torch.equal(load(folder, trust=True)(ground.inputs), ground.outputs)
    except CswapError as error:
        return error.exit_status, str(error)
    return 0, "" if same else "its outputs differ"


def recipes() -> Any:
    """Hypothesis's strategy of recipes."""
    from hypothesis import strategies as st

    at = st.floats(0, 1, exclude_max=True)
    walk = st.lists(st.integers(0, 40), min_size=0, max_size=7)
    value = st.one_of(
        st.sampled_from(VALUES),
        st.integers(),
        st.floats(),
        st.text(max_size=8),
        st.lists(st.integers(-3, 300), max_size=5),
    )
    place = {"walk": walk, "value": value, "how": st.sampled_from(["set", "set", "set", "drop", "double"])}
    what = st.sampled_from(["json", "json", "json", "drop", "double", "tear", "last"])
    bytes_ = [
        {"op": st.just("flip"), "at": at, "bit": st.integers(0, 7)},
        {"op": st.just("cut"), "at": at},
        {"op": st.just("insert"), "at": at, "hex": st.binary(max_size=9).map(bytes.hex), "over": st.integers(0, 9)},
    ]
    json_, header = {"op": st.just("json"), **place}, {"op": st.just("header"), **place}
    line = {"op": st.just("line"), "at": at, "what": what, "signed": st.booleans(), **place}
    more = {"json": [json_, json_, json_], "safetensors": [header, header], "jsonl": [line, line, line]}

    def of(action: str) -> Any:
        files = [
            f for f in FILES if f in (_JOURNAL if action == "resume" else [n for n in FILES if n not in _JOURNAL[2:]])
        ]
        kinds = [
            st.fixed_dictionaries({"file": st.just(f), "action": st.just(action), **k})
            for f in files
            for k in (*bytes_, *more.get(f.rpartition(".")[2], []))
        ]
        return st.one_of(kinds)

    return st.sampled_from(ACTIONS).flatmap(of)


def kind_of(recipe: dict[str, Any], found: tuple[str, str]) -> str:
    """What makes two answers alike: file, command, and what was said, less names and numbers."""
    said = re.sub(r"/\S+|\d+|'[^']*'|\"[^\"]*\"|\([^)]*\)", "#", found[1])[:80]
    return f"{recipe['file']} {recipe['op']} {found[0]} {said}"


def run(
    ground: Ground, minutes: float, seed: int
) -> tuple[Counter[str], list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """Counts by command and answer, what went wrong, and one recipe of each kind of answer."""
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import seed as seeded

    counts: Counter[str] = Counter()
    wrong: list[dict[str, Any]] = []
    kinds: dict[str, dict[str, Any]] = {}
    end = time.monotonic() + 60 * minutes

    def one(recipe: dict[str, Any]) -> None:
        if time.monotonic() > end:
            return
        found = answer(ground, recipe)
        counts[f"{recipe['action']} {found[0]}"] += 1
        if found[0] not in ("fine", "refused", "skipped"):
            wrong.append({**recipe, "answer": found[0], "said": found[1]})
            print(json.dumps(wrong[-1])[:600], flush=True)
        if found[0] != "skipped":
            kinds.setdefault(kind_of(recipe, found), recipe)

    rounds = 0
    while time.monotonic() < end:
        check = settings(
            max_examples=200,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )(given(recipes())(one))
        seeded(1000 * seed + rounds)(check)()
        rounds += 1
    return counts, wrong, kinds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=int, default=0, help="recipes to write to tests/corpus/fuzz.json")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        ground = Ground(Path(scratch))
        start = time.monotonic()
        counts, wrong, kinds = run(ground, asked.minutes, asked.seed)
        seconds = time.monotonic() - start
    if asked.keep:
        CORPUS.parent.mkdir(exist_ok=True)
        step = max(1, len(kinds) // asked.keep)
        kept = [kinds[k] for k in sorted(kinds)][::step]
        kept += [{k: v for k, v in w.items() if k not in ("answer", "said")} for w in wrong[:20]]
        CORPUS.write_text("[\n" + ",\n".join(json.dumps(r) for r in kept) + "\n]\n")
    by_action = {
        a: {o: counts[f"{a} {o}"] for o in sorted({k.partition(" ")[2] for k in counts}) if counts[f"{a} {o}"]}
        for a in ACTIONS
    }
    write_result(
        "fuzz",
        {
            "command": f"python benchmarks/fuzz.py --minutes {asked.minutes:g} --seed {asked.seed}", "seed": asked.seed, **machine(),
            "minutes": round(seconds / 60, 1), "spoiled": sum(n for k, n in counts.items() if not k.endswith("skipped")),
            "kinds_of_answers": len(kinds), "by_command": by_action, "wrong": wrong[:50],
        },
    )  # fmt: skip


if __name__ == "__main__":
    main()
