"""A place of its own for every case, and what must hold whenever something is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from cswap.cli.app import main
from tests.end_to_end.conftest import Place, copy_of, with_artifact


@pytest.fixture(scope="session")
def template(tmp_path_factory):
    """A network, its data, and an artifact made of them."""
    return with_artifact(tmp_path_factory.mktemp("template"), "art")


@pytest.fixture
def place(template, tmp_path):
    """A copy of its own for every case."""
    return copy_of(template, tmp_path)


def held(root: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(root)): p.read_bytes()
        for p in sorted(root.rglob("*"))
        if p.is_file() and "__pycache__" not in p.parts
    }


def refused(capsys, place: Place, arguments: list[str], *words: str, status: int = 2) -> None:
    """One line, the right status, no traceback, a log where the run failed, nothing written or changed."""
    before = held(place.root)
    capsys.readouterr()
    got = main(arguments)
    out, err = capsys.readouterr()
    errors = [line for line in err.splitlines() if not line.startswith("cswap: warning")]
    assert got == status, (got, err)
    assert len(errors) == 1, err
    assert out == ""
    assert "Traceback" not in err
    foreseen = not any(w.endswith("Error") for w in words)  # a case that is about what nobody thought of names it
    assert ("the run failed (" in err) == (not foreseen), err
    assert ("the log is" in err or "no log could be written" in err) == (status == 1), err
    for word in words:
        assert word in errors[0], errors[0]
    assert held(place.root) == before
