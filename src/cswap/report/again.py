"""The command that makes an artifact again, from its manifest."""

from __future__ import annotations

import json
import shlex
from typing import Any

from cswap.methods.options import Options

_DATA = {
    "image_size": "--image-size", "mean": "--mean", "std": "--std", "per_class": "--per-class", "labels": "--labels",
    "calibration_split": "--calibration-split", "eval_split": "--eval-split", "eval_samples": "--eval-samples",
    "tokenizer": "--tokenizer", "max_length": "--max-length", "ignore_index": "--ignore-index",
}  # fmt: skip
_LEFT_TO_DEFAULT: dict[str, Any] = {"per_class": 128}


_WISH = {
    "recover": "--recover", "round_to": "--round-to", "latency_batch": "--latency-batch", "certify": "--certify",
    "margin": "--margin", "bound": "--bound", "recover_per_class": "--recover-per-class",
}  # fmt: skip


def arguments_of(
    manifest: dict[str, Any], target: str | None = None, summary: dict[str, Any] | None = None
) -> list[str] | None:
    """What to give `cswap` to make this artifact again, or None for one that was saved from Python.

    target: what was asked, where it is not what the manifest says was reached. summary: holds the batch of a latency target.
    DATA stands for a certificate's data where the artifact does not say it.
    """
    source, data = manifest.get("source"), manifest.get("data")
    if not isinstance(source, dict) or not isinstance(data, dict):
        return None
    words = ["prune", "--model", str(source["spec"])]
    for name, value in (source.get("arguments") or {}).items():
        words += ["--model-arg", f"{name}={_argument(value)}"]
    if source.get("weights"):
        words += ["--weights", str(source["weights"])]
    words += ["--data", str(data["text"])]
    for name, flag in _DATA.items():
        if data.get(name) is not None and data[name] != _LEFT_TO_DEFAULT.get(name):
            words += [flag, str(data[name])]
    if data.get("allow_imbalance"):
        words.append("--allow-imbalance")
    if data.get("unlabelled"):
        words.append("--unlabelled")
    words += ["--task", str(manifest.get("task", "classification")), "--method", str(manifest["method"])]
    words += _options(manifest.get("options", {}))
    run = manifest.get("run") if isinstance(manifest.get("run"), dict) else {}
    for flag in ("only", "exclude"):
        for pattern in (run or {}).get(flag, []):
            words += [f"--{flag}", str(pattern)]
    words += _wish(manifest, summary or {})
    return [*words, "--target", _several(manifest) or target or str(manifest["target"])]


def _several(manifest: dict[str, Any]) -> str:
    """The targets that were certified one after the other, as `--target` takes them; empty where there was one."""
    asked = (manifest.get("certificate") or {}).get("asked") or []
    return ",".join([str(t) if i == 0 else str(t).partition("=")[2] for i, t in enumerate(asked)])


def _argument(value: Any) -> str:
    """A value as `--model-arg` reads it back: text where it is text and would not be read as anything else, else JSON."""
    if isinstance(value, str):
        try:
            json.loads(value)
        except json.JSONDecodeError:
            return value
    return json.dumps(value)


def _wish(manifest: dict[str, Any], summary: dict[str, Any]) -> list[str]:
    recovery, certificate, aim = (
        part if isinstance(part, dict) else {}
        for part in (manifest.get("recovery"), manifest.get("certificate"), summary.get("aim"))
    )
    run = manifest.get("run")
    timed = run.get("latency_batch") if isinstance(run, dict) else None  # where units are counted in time
    held = {
        "recover": recovery.get("how"), "recover_per_class": recovery.get("per_class"), "round_to": manifest.get("round_to"), "latency_batch": aim.get("batch", timed),
        "certify": (certificate.get("data") or "DATA") if certificate else None, "margin": certificate.get("margin"), "bound": certificate.get("bound"),
    }  # fmt: skip
    usual = {"recover": "none", "round_to": 1, "latency_batch": 1, "margin": 0.02, "bound": "betting"}
    return [w for n, v in held.items() if v is not None and v != usual.get(n) for w in (_WISH[n], str(v))]


def _options(options: dict[str, Any]) -> list[str]:
    usual, words = Options().as_dict(), []
    for name, value in options.items():
        if value == usual.get(name) or value is None:
            continue
        flag = "--" + name.replace("_", "-")
        words += [flag] if value is True else [flag, str(value)]
    return words


def command_of(
    manifest: dict[str, Any], target: str | None = None, summary: dict[str, Any] | None = None
) -> str | None:
    """The same as one line for a POSIX shell."""
    words = arguments_of(manifest, target, summary)
    return None if words is None else shlex.join(["cswap", *words, "--out", "DIR"])
