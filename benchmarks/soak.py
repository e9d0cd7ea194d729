"""Does `cswap prune` stay flat in memory, bounded on disk and alive for a long time on 50,000 units?

    python benchmarks/soak.py [--minutes 20] [--memory 208MiB] [--seed 0]

A synthetic residual network of 49 blocks with 1,024 hidden channels each on 8×8 maps, two classes that it tells apart itself, and
200 samples a class. The command runs in a process of its own; from outside its resident memory is read four times a second,
and the journal's lines and bytes. After the minutes it gets Ctrl-C, and must end as an interrupted run does. Peak memory is
counted from the moment the analysis begins, as `--memory` promises: a budget for activations. Writes benchmarks/results/soak.json.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from _machine import machine, write_result
from cswap.cli.options import bytes_of

NETWORK = """
import functools

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Subset, TensorDataset

BLOCKS, HIDDEN, STREAM = 49, 1024, 16


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, STREAM, 3, 1, 1)
        self.a = nn.ModuleList(nn.Conv2d(STREAM, HIDDEN, 1) for _ in range(BLOCKS))
        self.b = nn.ModuleList(nn.Conv2d(HIDDEN, STREAM, 1) for _ in range(BLOCKS))
        self.fc = nn.Linear(STREAM, 2)

    def forward(self, x):
        x = self.stem(x)
        for a, b in zip(self.a, self.b):
            x = x + b(F.relu(a(x)))
        return self.fc(x.mean((2, 3)))


@functools.cache
def made():
    torch.manual_seed(SEED)
    net, x = Net().eval(), torch.randn(600, 3, 8, 8)
    with torch.no_grad():
        for b in net.b:
            b.weight.mul_(0.3)
        logits = torch.cat([net(part) for part in x.split(20)])
        way = logits[:, 1] - logits[:, 0]
        scale = 3 / way.std()
        net.fc.weight.mul_(scale)
        net.fc.bias.mul_(scale)
        net.fc.bias[1] -= scale * way.median()
    return net, TensorDataset(x, (way > way.median()).long())


def net():
    return made()[0]


def data():
    whole = made()[1]
    return whole, Subset(whole, range(20))
"""


def resident(pid: int) -> int:
    """Bytes of a process in memory; 0 when it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def watched(process: subprocess.Popen[bytes], out: Path, minutes: float) -> list[tuple[float, int, int, int, int]]:
    """(seconds since the journal was opened, resident bytes, decisions, bytes of lines, bytes of records), four a second."""
    seen: list[tuple[float, int, int, int, int]] = []
    lines, read, begin = 0, 0, None
    while process.poll() is None:
        time.sleep(0.25)
        journal, records = out / "path.jsonl", out / "effects.part"
        if not journal.exists():
            continue
        now = time.monotonic()
        begin = begin or now
        with journal.open("rb") as stream:
            stream.seek(read)
            fresh = stream.read()
        read, lines = read + len(fresh), lines + fresh.count(b"\n")
        seen.append((now - begin, resident(process.pid), lines, read, records.stat().st_size))
        if now - begin > 60 * minutes:
            break
    return seen


def summed(seen: list[tuple[float, int, int, int, int]], memory: int) -> dict[str, Any]:
    """What the samples come to."""
    t, rss, lines, size, records = (np.asarray(c, dtype=np.float64) for c in zip(*seen, strict=True))
    late = t > t[-1] / 4  # the first quarter warms up
    moved = np.concatenate([[0.0], t[np.flatnonzero(np.diff(lines)) + 1], [t[-1]]])
    peak = float(rss.max() - rss[0])
    return {
        "minutes": round(t[-1] / 60, 1), "samples": len(t), "decisions": int(lines[-1]),
        "resident_at_start_mib": round(rss[0] / 2**20, 1), "resident_peak_mib": round(rss.max() / 2**20, 1),
        "resident_mean_mib_by_quarter": [round(float(p.mean()) / 2**20, 1) for p in np.array_split(rss, 4)],
        "slope_mib_per_minute": round(float(np.polyfit(t[late] / 60, rss[late] / 2**20, 1)[0]), 3),
        "memory_given_mib": round(memory / 2**20, 1), "peak_above_start_mib": round(peak / 2**20, 1),
        "peak_of_memory_given": round(peak / memory, 3),
        "journal_bytes_per_decision": round(float(size[-1] / lines[-1]), 1),
        "records_bytes_per_decision": round(float(records[-1] / lines[-1]), 1),
        "longest_seconds_between_decisions": round(float(np.diff(moved).max()), 1),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--memory", default="208MiB")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        (root / "net.py").write_text(f"SEED = {asked.seed}\n{NETWORK}")
        command = [
            sys.executable, "-c", "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
            "import torch; torch.set_num_threads(1); from cswap.cli.app import main; sys.exit(main(sys.argv[1:]))",
            "prune", "--model", f"{root}/net.py:net", "--data", f"{root}/net.py:data", "--per-class", "200", "--target",
            "noncritical", "--memory", asked.memory, "--out", str(root / "out"), "--quiet",
        ]  # fmt: skip
        process = subprocess.Popen(command, stderr=subprocess.PIPE)
        seen = watched(process, root / "out", asked.minutes)
        process.send_signal(signal.SIGINT)
        said = (process.communicate()[1] or b"").decode().strip().splitlines()
        if not seen or process.returncode not in (0, 130):
            raise SystemExit(f"the run ended with {process.returncode}: {said[-1:]}")
        units = json.loads((root / "out" / "path.jsonl").read_text().splitlines()[0])
        state = sum(f.stat().st_size for f in (root / "out").glob("state*"))
    where = machine()
    where["machine"]["threads"] = 1
    result = {
        "command": f"python benchmarks/soak.py --minutes {asked.minutes:g} --memory {asked.memory}", "seed": asked.seed, **where,
        "units": 49 * 1024 + 16, "first_group": units["group"], "status": process.returncode, "said": said[-1:],
        **summed(seen, bytes_of(asked.memory)), "state_bytes": state,
    }  # fmt: skip
    print(json.dumps(result, indent=1))
    write_result("soak", result)


if __name__ == "__main__":
    main()
