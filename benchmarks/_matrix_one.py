"""One model of the support matrix."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import resource
import shutil
import tempfile
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from cswap.artifacts.folder import load, save
from cswap.data.models import ModelSpec, one_line
from cswap.errors import CswapError, StructureError
from cswap.methods.options import Options
from cswap.methods.path import PruningPath
from cswap.structure.check import Agreement, randomise_, tensors_of, widest
from cswap.structure.discover import count_params, discover, macs_of
from cswap.structure.groups import Group, Removed, Structure
from cswap.structure.ledger import Ledger
from cswap.structure.surgery import kept_indices, light_copy, own_consumers_, shrink_in_place, zero_cut_
from cswap.types import Decision, Target

FORK = multiprocessing.get_context("fork")
FRACTION = 0.3


def part_of(structure: Structure, seed: int) -> Removed:
    """A random 30 % of every group: at least one unit gone, and one kept."""
    rng = np.random.default_rng(seed)
    return {
        g.name: np.sort(rng.permutation(g.size)[: max(1, round(FRACTION * g.size))]).astype(np.int64) for g in structure
    }


def shifted(structure: Structure) -> Structure:
    """The same structure with every consumer reading its neighbour's column: the check must see that."""
    groups = [
        Group(g.name, g.size, tuple(
            dataclasses.replace(s, positions=np.roll(s.positions, 1)) if s.role == "consumer" else s for s in g.slots
        ))
        for g in structure
    ]  # fmt: skip
    return dataclasses.replace(structure, groups=tuple(groups))


def apart(structure: Structure, removed: Removed) -> Removed:
    """What is removed, without groups whose consumers also read units of a smaller group (a head, and a dimension of it):

    shifted, the two would overlap otherwise than their producers do, and the network would not run.
    """
    taken: set[tuple[str, int]] = set()
    kept: Removed = {}
    for group in sorted((structure[name] for name in removed), key=lambda g: sum(len(s.positions) for s in g.slots)):
        read = {(s.module, int(n)) for s in group.slots if s.role == "consumer" for n in s.positions}
        if taken.isdisjoint(read):
            kept[group.name] = removed[group.name]
        taken |= read
    return kept


def built(request: dict[str, Any]) -> tuple[ModelSpec, nn.Module, torch.Tensor]:
    """The first attempt (arguments, image side) that runs: its spec, the model with values that show, two inputs."""
    error: Exception | None = None
    for arguments, size in request["attempts"]:
        try:
            spec = ModelSpec.parse(request["spec"], arguments)
            model = spec.build()
            inputs = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(2))
            with torch.no_grad():
                model(inputs)
            return spec, randomise_(model, 1, inputs).train().eval(), inputs  # what was kept of other weights goes
        except Exception as reason:  # noqa: BLE001 — the next size may do
            error = reason
    raise RuntimeError(f"it does not run at any size tried ({type(error).__name__}: {one_line(error)})")  # type: ignore[arg-type]


def path_of(structure: Structure, removed: Removed, inputs: torch.Tensor) -> PruningPath:
    """These units as a path, in the order of the groups."""
    ledger, decisions = Ledger(structure), []
    for name, units in removed.items():
        for n in units:
            ledger.remove(structure[name], int(n))
            decisions.append(Decision(len(decisions) + 1, "rank", name, int(n), True, "random", ratio=ledger.ratio()))
    return PruningPath(
        structure, "random", Options(seed=4).as_dict(), ("0",), decisions, ended="30 % of each group", example=inputs
    )


def reasons(structure: Structure) -> dict[str, int]:
    """How many dimensions were left out, by reason, without the names in it."""
    counts: dict[str, int] = {}
    for x in structure.left_out:
        counts[x.reason[:200]] = counts.get(x.reason[:200], 0) + 1
    return counts


def tried(request: dict[str, Any], found: dict[str, Any], loader: Connection) -> None:
    """Discover, prune 30 %, compare, save, load elsewhere; what was found goes into `found` as it comes."""
    spec, model, inputs = built(request)
    found |= {"arguments": spec.arguments, "input": list(inputs.shape[1:]), "params": count_params(model)}
    start = time.process_time()
    structure = discover(model, inputs)
    found |= {
        "structure_seconds": round(time.process_time() - start, 2), "groups": len(structure), "units": structure.units,
        "macs": structure.total_macs, "left_out": reasons(structure), "never_called": len(structure.uncalled),
    }  # fmt: skip
    if not len(structure):
        found["status"] = "refused"
        return
    removed = part_of(structure, seed=4)
    found["status"] = "wrong"
    path = path_of(structure, removed, inputs)
    pruned = path.apply(model, Target("units", path.ratio.units))
    result = pruned._cswap.agreement
    assert isinstance(result, Agreement)
    counted = (round(path.ratio.params * structure.total_params), round(path.ratio.macs * structure.total_macs))
    real = (structure.total_params - count_params(pruned), structure.total_macs - macs_of(pruned, inputs)[0])
    found |= {
        "agreement": str(result), "visible": result.visible, "where": result.where, "ratio": path.ratio.as_dict(),
        "counts_agree": counted == real, "off_by_one_caught": caught(model, structure, removed, inputs, result),
    }  # fmt: skip
    folder = Path(tempfile.mkdtemp(prefix="cswap-matrix-"))
    try:
        save(pruned, folder / "a", path=path, factory=spec)
        with torch.no_grad():
            expected = tensors_of(pruned(inputs))
        del pruned, model
        loader.send((folder / "a", inputs.numpy()))  # arrays: tensors would be shared, and gone with their process
        again = loader.recv()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if isinstance(again, str):
        found["reason"] = f"it does not load in a new process: {again}"
        return
    found["loaded_difference"] = widest(list(zip(expected, map(torch.from_numpy, again), strict=True)))
    right = found["counts_agree"] and found["off_by_one_caught"] is not False
    if right and found["loaded_difference"] == 0:
        found["status"] = "pruned" if result.visible else "unseen"


def caught(
    model: nn.Module, structure: Structure, removed: Removed, inputs: torch.Tensor, result: Agreement
) -> bool | None:
    """Whether the comparison sees an off-by-one; None where the output says nothing anyway."""
    if result.where != "output":
        return None
    removed = apart(structure, removed)
    with torch.no_grad():
        masked = tensors_of(
            zero_cut_(own_consumers_(light_copy(model, structure), structure, removed), structure, removed)(inputs)
        )
        try:
            kept = kept_indices(shifted(structure), removed)
            crossed = tensors_of(shrink_in_place(light_copy(model, structure), kept)(inputs))
        except (RuntimeError, IndexError):
            return True  # it does not even run: layers do not fit each other
    return not widest(list(zip(masked, crossed, strict=True))) <= result.allowed


def _loads(pipe: Connection) -> None:
    """In a process that never saw the network: what the artifact there says to the inputs, or why it does not load."""
    parent = os.getppid()
    while not pipe.poll(1):
        if os.getppid() != parent:
            return  # it was ended
    folder, inputs = pipe.recv()
    try:
        with torch.no_grad():
            pipe.send([t.numpy() for t in tensors_of(load(folder, trust=True)(torch.from_numpy(inputs)))])
    except Exception as error:  # noqa: BLE001 — it is the finding
        pipe.send(f"{type(error).__name__}: {one_line(error)}")


def outcome(request: dict[str, Any], memory: int) -> dict[str, Any]:
    """What came of one model, with at most `memory` bytes of address space."""
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    torch.set_num_threads(1)
    loader, its = FORK.Pipe()
    process = FORK.Process(target=_loads, args=(its,), daemon=True)  # before there is a network
    process.start()
    found: dict[str, Any] = {"name": request["name"], "spec": request["spec"], "status": "error"}
    start, used = time.perf_counter(), time.process_time()
    try:
        tried(request, found, loader)
    except StructureError as reason:
        found |= {"status": "refused", "reason": str(reason)}
    except CswapError as reason:
        found |= {"status": "wrong", "reason": f"{type(reason).__name__}: {reason}"}
    except MemoryError:
        found |= {"status": "memory", "reason": "it needs more memory than the limit"}
    except Exception as error:  # noqa: BLE001 — a traceback is a finding
        memory_ran_out = "alloc" in str(error) and "memory" in str(error)
        found |= {
            "status": "memory" if memory_ran_out else "error",
            "reason": f"{type(error).__name__}: {one_line(error)}", "trace": traceback.format_exc()[-1500:],
        }  # fmt: skip
    finally:
        process.kill()
        process.join()
    return found | {
        "seconds": round(time.perf_counter() - start, 1),
        "cpu_seconds": round(time.process_time() - used, 1),
    }
