"""Ways to spoil a file of an artifact or a journal, each said by a small JSON recipe, so that it can be kept and replayed."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any

FILES = (
    "manifest.json", "run.json", "path.jsonl", "effects.part", "effects.safetensors", "model.safetensors", "state.0.safetensors",
    "state.1.safetensors", "summary.json", "factory.py",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2, 10**6, 10**9, 2**63, 10**30, -0.5, 1e308, float("nan"), float("inf"), "", "x", "NaN", "../x",
    "../net.safetensors", "/etc/passwd", "a\0b", "\ud800", "params=0.5", "x" * 100_000, [], {}, [0, 0], [[0]], {"a": 1},
    [10**9, 10**9], [10**12], "DEEP",
)  # fmt: skip
DEEP = 3000  # levels of the value DEEP


def spoil(folder: Path, recipe: dict[str, Any]) -> bool:
    """Do what the recipe says to its file; False where it says nothing of this folder."""
    file = folder / recipe["file"]
    if not file.is_file():
        return False
    raw = file.read_bytes()
    made = _OPERATIONS[recipe["op"]](raw, recipe)
    if made is None or made == raw:
        return False
    file.write_bytes(made)
    return True


def _place(raw: bytes, recipe: dict[str, Any]) -> int:
    return int(recipe["at"] * len(raw)) if raw else 0


def _flip(raw: bytes, recipe: dict[str, Any]) -> bytes | None:
    if not raw:
        return None
    made, at = bytearray(raw), min(_place(raw, recipe), len(raw) - 1)
    made[at] ^= 1 << recipe["bit"]
    return bytes(made)


def _cut(raw: bytes, recipe: dict[str, Any]) -> bytes:
    return raw[: _place(raw, recipe)]


def _insert(raw: bytes, recipe: dict[str, Any]) -> bytes:
    at = _place(raw, recipe)
    return raw[:at] + bytes.fromhex(recipe["hex"]) + raw[at + recipe["over"] :]


def _text(value: Any) -> str:
    marked = json.dumps(value)
    return marked.replace('"DEEP"', "[" * DEEP + "]" * DEEP)


def _walked(data: Any, recipe: dict[str, Any]) -> Any:
    """The same data with one place, found by the walk, set, taken out or doubled."""
    node, above = data, []
    for step in recipe["walk"]:
        if not isinstance(node, dict | list) or not node:
            break
        key = sorted(node)[step % len(node)] if isinstance(node, dict) else step % len(node)
        above.append((node, key))
        node = node[key]
    if not above:
        return recipe["value"]
    parent, key = above[-1]
    if recipe["how"] == "set":
        parent[key] = recipe["value"]
    elif recipe["how"] == "drop":
        del parent[key]
    elif isinstance(parent, list):
        parent.insert(key, parent[key])
    else:
        parent[f"{key}x"] = parent[key]
    return data


def _json(raw: bytes, recipe: dict[str, Any]) -> bytes | None:
    try:
        return _text(_walked(json.loads(raw), recipe)).encode("utf-8", "surrogatepass")
    except ValueError:
        return None


def _header(raw: bytes, recipe: dict[str, Any]) -> bytes | None:
    """The header of a safetensors file, its length made right again."""
    if len(raw) < 8:
        return None
    (size,) = struct.unpack("<Q", raw[:8])
    changed = _json(raw[8 : 8 + size], recipe)
    return None if changed is None else struct.pack("<Q", len(changed)) + changed + raw[8 + size :]


def _signed(line: bytes) -> bytes:
    """The line with a CRC that is right, as somebody writes it who knows of it; what is no JSON object stays."""
    try:
        data = json.loads(line)
    except (ValueError, RecursionError):
        return line
    if not isinstance(data, dict) or "crc" not in data:
        return line
    del data["crc"]
    text = json.dumps(data)
    return f'{text[:-1]}, "crc": "{zlib.crc32(text.encode()):08x}"}}'.encode()


def _line(raw: bytes, recipe: dict[str, Any]) -> bytes | None:
    """One line of path.jsonl changed, dropped, doubled, torn or moved to the end."""
    lines = raw.splitlines(keepends=True)
    if not lines:
        return None
    at = min(int(recipe["at"] * len(lines)), len(lines) - 1)
    what = recipe["what"]
    if what == "json":
        changed = _json(lines[at], recipe)
        if changed is None:
            return None
        lines[at] = (_signed(changed) if recipe.get("signed") else changed) + b"\n"
    elif what == "drop":
        del lines[at]
    elif what == "double":
        lines.insert(at, lines[at])
    elif what == "tear":
        lines[at] = lines[at][: len(lines[at]) // 2] + (b"" if at == len(lines) - 1 else b"\n")
    else:
        lines.append(lines.pop(at))
    return b"".join(lines)


_OPERATIONS = {"flip": _flip, "cut": _cut, "insert": _insert, "json": _json, "header": _header, "line": _line}
