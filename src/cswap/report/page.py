"""`report.html`: one self-contained page from an artifact alone. No request leaves it, and all text in it is escaped."""

from __future__ import annotations

import base64
import hashlib
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from cswap.artifacts.files import REPORT, new_file, write_whole
from cswap.artifacts.folder import open_artifact, told_by
from cswap.errors import ArtifactError
from cswap.report.facts import facts_of

_ASSETS = files("cswap.report") / "assets"
_IN_SCRIPT = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def write_report(
    folder: str | Path, out: Path | None = None, *, images: dict[str, Any] | None = None, force: bool = False
) -> Path:
    """Write the report of an artifact into it, or to `out`, which with `force` may be there; returns the file. Raises
    ArtifactError, InputError.

    images: what `activations.sprite` made, to show the samples that activate a unit most.
    """
    from jinja2 import UndefinedError

    if out is not None:
        new_file("out", out, force)
    artifact = open_artifact(folder)
    try:
        with told_by(artifact.folder):
            page = page_of(facts_of(artifact) | {"images": images})
    except UndefinedError as error:
        raise ArtifactError(f"{artifact.folder}: the manifest or the summary is malformed ({error.message})") from None
    file = out or artifact.folder / REPORT
    try:
        write_whole(file, page.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise ArtifactError(f"{file} cannot be written ({error.strerror or error})") from None
    return file


def page_of(facts: dict[str, Any]) -> str:
    """The HTML of facts. The policy in its head lets its own script run and nothing else, whatever a class is called."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"value": shown, "change": change, "percent": percent}
    script = _asset("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.from_string(_asset("report.html.j2")).render(
        **facts,
        script=_Trusted(script),
        style=_Trusted(_asset("report.css")),
        digest=digest,
        data=_Trusted(_json(facts)),
    )


class _Trusted(str):
    """Text of our own that goes into the page as it is."""

    __slots__ = ()

    def __html__(self) -> str:
        return self


def _asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")


def _json(facts: dict[str, Any]) -> str:
    """JSON that cannot end a script element."""
    text = json.dumps(facts, allow_nan=False, separators=(",", ":"))
    for character, escaped in _IN_SCRIPT.items():
        text = text.replace(character, escaped)
    return text


def percent(value: float | None, digits: int = 1) -> str:
    """A fraction as per cent, or a dash."""
    return "–" if value is None else f"{100 * value:.{digits}f} %"


def shown(value: float | None, kind: str) -> str:
    """A figure of a kind: quality (a fraction), count, or ms."""
    if value is None:
        return "–"
    if kind == "quality":
        return percent(value, 2)
    return f"{value:.2f} ms" if kind == "ms" else f"{value:,.0f}"


def change(row: dict[str, Any]) -> str:
    """After against before: points of quality, else per cent."""
    before, after = row["before"], row["after"]
    if before is None or after is None:
        return "–"
    if row["kind"] == "quality":
        return f"{100 * (after - before):+.2f} points".replace("-", "−")
    return f"{100 * (after / before - 1):+.1f} %".replace("-", "−") if before else "–"
