"""More than one process: who has which samples, and putting what they found together. Does nothing when alone."""

from __future__ import annotations

import datetime
import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.distributed as dist

from cswap.errors import InputError, RunError
from cswap.types import FloatArray, IntArray

_PATIENCE = datetime.timedelta(minutes=20)  # how long a process waits for the others


def world() -> int:
    """How many processes share the work."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number; 0 writes and speaks."""
    return dist.get_rank() if world() > 1 else 0


@contextmanager
def joined(device: str) -> Iterator[str]:
    """Join the other processes when started by torchrun (WORLD_SIZE, RANK set); gives the device of this one.

    gloo on the CPU, nccl on CUDA, where process i takes device LOCAL_RANK.
    """
    count = os.environ.get("WORLD_SIZE", "1")
    if count in ("", "1") or "RANK" not in os.environ or dist.is_initialized():
        yield device
        return
    cuda = device.startswith("cuda")
    try:
        if cuda:
            device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
            torch.cuda.set_device(device)
        importlib.import_module("torch.distributed.nn.functional")  # later, its defaults would hold the group for good
        dist.init_process_group("nccl" if cuda else "gloo", timeout=_PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"torchrun: the {count} processes cannot meet ({str(error).splitlines()[0][:160]})") from error
    try:
        yield device
    finally:
        dist.destroy_process_group()


def owned(targets: IntArray, of: int, who: int) -> IntArray:
    """Sample numbers, ascending, that process `who` of `of` has: an equal part of every class."""
    if of == 1:
        return np.arange(len(targets), dtype=np.int64)
    parts = [np.array_split(np.flatnonzero(targets == k), of)[(who + k) % of] for k in np.unique(targets)]
    return np.sort(np.concatenate(parts)).astype(np.int64)


def gathered(local: FloatArray, sizes: list[int]) -> list[FloatArray]:
    """What every process has, by process; `sizes`: length of each one's flat float64 array.

    Raises RunError when another process is gone.
    """
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
    mine = torch.zeros(max(1, *sizes), dtype=torch.float64)
    mine[: local.size] = torch.from_numpy(np.ascontiguousarray(local).ravel())
    everyone = [torch.empty_like(mine, device=device) for _ in sizes]
    with _others_alive():
        dist.all_gather(everyone, mine.to(device))
        held = [t.cpu().numpy() for t in everyone]  # on CUDA this is where one waits for the others
    return [t[:n] for t, n in zip(held, sizes, strict=True)]


def all_agree(here: bool) -> bool:
    """Whether it holds in every process."""
    return here if world() == 1 else all(bool(t[0]) for t in gathered(np.array([float(here)]), [1] * world()))


def from_first(data: bytes | None) -> bytes:
    """Bytes that process 0 has, given to all."""
    if world() == 1:
        return data or b""
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
    with _others_alive():
        size = torch.tensor([len(data or b"")], dtype=torch.int64, device=device)
        dist.broadcast(size, 0)
        content = torch.empty(int(size), dtype=torch.uint8, device=device)
        if rank() == 0 and data:
            content.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
        dist.broadcast(content, 0)
        return content.cpu().numpy().tobytes()


@contextmanager
def _others_alive() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise RunError(
            f"another of the {world()} processes ended ({str(error).splitlines()[0][:120]}); the journal is kept: "
            "the same command with --resume goes on"
        ) from error
