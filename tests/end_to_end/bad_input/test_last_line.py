"""Errors and stops nobody thought of: still one line and the right status."""

from __future__ import annotations

import signal
import tempfile
from typing import Any

import pytest

from tests.end_to_end.bad_input.conftest import refused
from tests.end_to_end.conftest import FACTORY


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_that_native_code_turns_into_another_error_is_told_as_one(place, capsys, number):
    place.factory.write_text(
        f"import os, time\n\ndef colours(classes=3):\n    try:\n        os.kill(os.getpid(), {int(number)})\n        time.sleep(5)\n"
        "    except KeyboardInterrupt:\n        raise RuntimeError('could not determine the shape') from None\n"
    )
    # a shell may have started this process with Ctrl-C ignored
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        refused(capsys, place, place.prune("out"), "interrupted; nothing was written", status=130)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_stop_that_native_code_swallows_is_heeded(place, capsys):
    place.factory.write_text(
        FACTORY + "\n_made = colours\n\ndef colours(classes=3):\n    import os, signal, time\n    try:\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n        time.sleep(5)\n    except KeyboardInterrupt:\n        pass\n    return _made(classes)\n"
    )
    refused(capsys, place, place.prune("out"), "interrupted; nothing was written", status=130)


def test_an_error_nobody_thought_of_is_one_line_also_without_room_for_its_log(place, capsys, monkeypatch):
    def fails(*_: Any, **__: Any) -> None:
        raise KeyError("nobody thought of it")

    monkeypatch.setattr("cswap.pipeline.prune", fails)
    monkeypatch.setattr(tempfile, "tempdir", str(place.root / "nowhere"))
    refused(capsys, place, place.prune("out"), "KeyError", "no log could be written", status=1)


def test_what_the_system_refuses_is_one_line(place, capsys, monkeypatch):
    def fails(*_: Any, **__: Any) -> None:
        (place.root / "net.py" / "below").open()

    monkeypatch.setattr("cswap.pipeline.prune", fails)
    refused(capsys, place, place.prune("out"), "net.py/below: Not a directory", status=1)
