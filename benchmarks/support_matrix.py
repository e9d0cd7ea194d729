"""What can be pruned: torchvision, one model of every timm family, Hugging Face's vision classifiers.

    python benchmarks/support_matrix.py --work DIR [--only PATTERN …] [--again] [--retry] [--write]

A random 30 % of each group is removed from a network with values that show; masked and pruned networks are compared, an
off-by-one must be caught, counts must be those of the pruned network, and it is saved and loaded. Every model has its own
process, with a time and a memory limit. DIR/matrix.jsonl keeps what was found, so that a second run does what is missing
(--retry: and what was not pruned; --again: and everything --only names).
"""

from __future__ import annotations

import argparse
import json
import resource
import signal
import time
from fnmatch import fnmatch
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from _machine import ROOT, machine, write_result
from _matrix_one import FORK, outcome

Request = dict[str, Any]
TYPICAL = 20_000_000  # parameters of a small model of a family


def of_torchvision() -> list[Request]:
    """Every classification and segmentation model."""
    from torchvision import models

    requests = []
    for module in (models, models.segmentation):
        for name in models.list_models(module=module):
            attempts: list[Any] = [[{}, 64], [{}, 96], [{}, 224]]
            if name.startswith("vit_"):
                size = 56 if name.endswith("14") else 64
                attempts = [[{"image_size": size}, size]]
            size = models.get_model_weights(name).DEFAULT.meta["num_params"]
            spec = f"torchvision:{name}"
            requests.append({"name": spec, "spec": spec, "attempts": attempts, "params": size})
    return requests


def smallest(module: str) -> str | None:
    """The model of a timm family with the fewest parameters (its toy models for tests apart)."""
    import timm

    best: tuple[int, str] | None = None
    for name in timm.list_models(module=module):
        if name.startswith("test_"):
            continue
        try:
            with torch.device("meta"):
                model = timm.create_model(name, pretrained=False)
        except Exception:  # noqa: BLE001 — some cannot be built without memory; a sibling can
            continue
        size = sum(p.numel() for p in model.parameters())
        best = min(best or (size, name), (size, name))
    return best[1] if best else None


def of_timm(work: Path) -> list[Request]:
    """One model of every family; which is worked out once and kept in the work folder."""
    import timm

    chosen_file = work / "families.json"
    chosen = json.loads(chosen_file.read_text()) if chosen_file.exists() else {}
    for module in timm.list_modules():
        if module not in chosen:
            chosen[module] = smallest(module)
            chosen_file.write_text(json.dumps(chosen, indent=1))
    requests = []
    for module, name in chosen.items():
        if name is None:
            continue
        side = int(timm.get_pretrained_cfg(name).input_size[-1])
        attempts = [[{}, 64], [{"img_size": 64}, 64], [{"img_size": 128}, 128], [{}, 128], [{}, side]]
        requests.append({"name": f"timm:{module}", "spec": f"timm:{name}", "attempts": attempts})
    return requests


def of_hugging_face() -> list[Request]:
    """Every vision classifier that builds from a small configuration."""
    from hf_vision import KINDS

    file = Path(__file__).with_name("hf_vision.py").relative_to(ROOT)
    return [
        {"name": f"hf:{kind}", "spec": f"{file}:classifier", "attempts": [[{"kind": kind}, s] for s in (64, 224)]}
        for kind in KINDS
    ]


def _child(pipe: Connection, request: Request, seconds: int, memory: int) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    pipe.send(outcome(request, memory))


def run_one(request: Request, seconds: int, memory: int) -> dict[str, Any]:
    """What came of one model, in a process forked from this one, which has the libraries loaded."""
    failed = {"name": request["name"], "spec": request["spec"]}
    start = time.perf_counter()
    mine, its = FORK.Pipe(duplex=False)
    process = FORK.Process(target=_child, args=(its, request, seconds, memory))
    process.start()
    its.close()
    try:
        found: dict[str, Any] = mine.recv()
        return found
    except EOFError:
        process.join()
        took = round(time.perf_counter() - start, 1)
        if process.exitcode in (-signal.SIGXCPU, -signal.SIGKILL) and took >= seconds:
            return failed | {"status": "time", "reason": f"not done after {seconds} s of one core", "seconds": took}
        return failed | {"status": "memory", "reason": f"its process ended with {process.exitcode}", "seconds": took}
    finally:
        process.kill()
        process.join()


def main() -> None:
    """Run what is missing, then (with --write) make the result and the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=["*"])
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--retry", action="store_true")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--seconds", type=int, default=240, help="of one core, a model")
    parser.add_argument("--memory", type=int, default=12 << 30)
    parser.add_argument("--budget", type=int, default=10**9, help="start no further model after so many seconds")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    journal = given.work / "matrix.jsonl"
    found = {}
    if journal.exists():
        found = {line["name"]: line for line in map(json.loads, journal.read_text().splitlines())}
    requests = of_torchvision() + of_timm(given.work) + of_hugging_face()
    turns = sorted(requests, key=lambda r: r.get("params", TYPICAL))  # the biggest last
    begin = time.perf_counter()
    torch.set_num_threads(1)
    for request in turns:
        name = request["name"]
        if not any(fnmatch(name, p) or fnmatch(request["spec"], p) for p in given.only):
            continue
        if name in found and not given.again and not (given.retry and found[name]["status"] != "pruned"):
            continue
        if time.perf_counter() - begin > given.budget:
            break
        found[name] = run_one(request, given.seconds, given.memory) | {"commit": machine()["commit"]}
        with journal.open("a") as stream:
            stream.write(json.dumps(found[name]) + "\n")
        f = found[name]
        print(f"{name} ({f['spec']}): {f['status']}, {f.get('groups', 0)} groups, {f.get('units', 0)} units, {f['seconds']} s; {f.get('reason', '')}", flush=True)  # fmt: skip
    if given.write:
        from support_page import write_page

        rows = [found[r["name"]] for r in requests if r["name"] in found]
        command = "python benchmarks/support_matrix.py --work DIR --write"
        data = {
            "command": command, "seed": 4, "fraction": 0.3, "models": rows, **machine(),
            "not_run": [r["name"] for r in requests if r["name"] not in found],
        }  # fmt: skip
        write_result("support_matrix", data)
        write_page(data)


if __name__ == "__main__":
    main()
