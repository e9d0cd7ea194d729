"""The registry of methods, and calling one with the settings it takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch

from cswap.causal.engine import exact
from cswap.errors import InputError
from cswap.methods.options import Options
from cswap.methods.path import PruningPath

Method = Callable[..., PruningPath]
METHODS: dict[str, Method] = {}


def register(name: str) -> Callable[[Method], Method]:
    """Decorator: make `method(model, units, calibration, task, …) -> PruningPath` known under `name`.

    Keyword settings (`target`, `options`, `start`, `sink`, `device`, `memory`) are passed to a method that names them.
    """

    def note(method: Method) -> Method:
        METHODS[name] = method
        return method

    return note


def find(name: str) -> Method:
    """A method by name; raises InputError for an unknown one."""
    if name not in METHODS:
        raise InputError(f"method: expected one of {', '.join(sorted(METHODS))}, got {name!r}")
    return METHODS[name]


def call(name: str, *args: Any, **settings: Any) -> PruningPath:
    """Run a method by name with those of `settings` it accepts; raises InputError for an unknown name."""
    method, device = find(name), torch.device(settings.get("device", "cpu"))
    amp = settings.get("options", Options()).amp
    parameters = inspect.signature(method).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        settings = {k: v for k, v in settings.items() if k in parameters}
    with exact(device, amp):
        return method(*args, **settings)
