"""The command `cswap`: options in, pipeline, tables or JSON out, one line for every error."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import IO, Annotated, Any, NoReturn

import typer

from cswap._version import __version__
from cswap.cli import analyse, look
from cswap.cli.console import STDOUT
from cswap.cli.options import flattened
from cswap.cli.progress import STOP, Interrupted, say_error
from cswap.errors import CswapError, CswapWarning

INTERRUPTED = Interrupted.exit_status
app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False,
    help="Make a trained PyTorch network smaller in one shot, without fine-tuning, and say why each part could go.",
)  # fmt: skip
COMMANDS: dict[str, Callable[..., None]] = {
    "prune": analyse.prune, "apply": analyse.apply, "compare": analyse.compare,
    "eval": look.evaluate, "explain": look.explain, "report": look.report, "export": look.export, "support": look.support, "demo": look.demo,
}  # fmt: skip
for name, command in COMMANDS.items():
    app.command(name)(flattened(command))


def _version(asked: bool) -> None:
    if asked:
        print(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    """Common options."""


@contextlib.contextmanager
def _stops_told() -> Iterator[None]:
    """SIGTERM ends a run as Ctrl-C does: journal flushed, model untouched. Either is remembered: native code that it
    strikes in makes another error of it, or none.
    """

    def stop(_signal: int, _frame: FrameType | None) -> None:
        STOP.came = True
        raise KeyboardInterrupt

    STOP.came, before = False, {}
    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            if number == signal.SIGTERM or callable(signal.getsignal(number)):  # under nohup Ctrl-C stays ignored
                before[number] = signal.signal(number, stop)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _own_warnings() -> Iterator[None]:
    """Our warnings are a line on standard error; those of the libraries are not the user's business."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", CswapWarning)
        warnings.showwarning = lambda message, *_rest, **_more: say_error(f"warning: {message}")
        yield


def _failed(line: str, error: BaseException) -> int:
    """Say that the run failed, and where the log is: first, since whoever started this may end it while a traceback is put together."""
    log: IO[str] | None = None
    where = "no log could be written"
    with contextlib.suppress(OSError):
        log = tempfile.NamedTemporaryFile("w", prefix="cswap-", suffix=".log", delete=False, encoding="utf-8")  # noqa: SIM115
        log.write(line + "\n")
        log.flush()
        where = f"the log is {log.name}"
    say_error(f"{line}; {where}")
    if log is not None:
        with contextlib.suppress(OSError):
            traceback.print_exception(error, file=log)
            log.close()
    return 1


def _by_the_system(error: Exception) -> str:
    """One line for what the system refused: a file, or the disk; nothing for other errors."""
    if not isinstance(error, OSError) or not error.strerror:
        return ""
    named = [os.fsdecode(f) for f in (error.filename, error.filename2) if isinstance(f, str | bytes | os.PathLike)]
    if named:
        return f"the run failed: {' → '.join(named)}: {error.strerror}"
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
    return f"the run failed: {error.strerror}" if full else ""


def _stopped(arguments: list[str] | None) -> int:
    """What is said of a stop that came back as another error."""
    typed = sys.argv[1:] if arguments is None else arguments
    outs = [b for a, b in itertools.pairwise(typed) if a == "--out"]
    outs += [a.partition("=")[2] for a in typed if a.startswith("--out=")]
    kept = ""
    with contextlib.suppress(OSError):
        kept = analyse._kept(Path(outs[-1])) if outs and typed[:1] == ["prune"] else ""
    say_error(f"interrupted{kept}")
    return INTERRUPTED


def _came(error: Any, arguments: list[str] | None) -> str:
    """What was typed for the option that a usage error is about."""
    typed = sys.argv[1:] if arguments is None else arguments
    names = getattr(getattr(error, "param", None), "opts", [])
    values = [b for a, b in itertools.pairwise(typed) if a in names]
    values += [a.partition("=")[2] for a in typed if a.partition("=")[0] in names and "=" in a]
    return f", got {values[-1]!r}" if values else ""


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status: 0 done, 1 the run failed, 2 wrong input, 130 interrupted."""
    try:
        with (
            _stops_told(),
            _own_warnings(),
            STDOUT.kept_free("--json" in (sys.argv[1:] if arguments is None else arguments)),
        ):
            status = app(args=arguments, standalone_mode=False, prog_name="cswap")
        if status == INTERRUPTED:  # caught by typer, outside of a run
            say_error("interrupted")
        return status if isinstance(status, int) else 0
    except CswapError as error:
        if STOP.came and not isinstance(error, Interrupted):
            return _stopped(arguments)
        if error.exit_status == 1:
            return _failed(str(error), error)
        say_error(str(error))
        return error.exit_status
    except KeyboardInterrupt:
        say_error("interrupted")
        return INTERRUPTED
    except SystemExit as error:  # the parser raises none but of a closed pipe: a model or a dataset ended the program
        if isinstance(error.__context__, BrokenPipeError):
            return 1
        say_error(f"the run failed: code of the model or the data ended the program (SystemExit {error.code!r})")
        return 1
    except BrokenPipeError:
        return 1
    except Exception as error:  # noqa: BLE001 — the last line of defence: never a traceback
        if STOP.came:
            return _stopped(arguments)
        if hasattr(error, "format_message"):  # a usage error of the option parser
            said = error.format_message() or "expected a command, got none"  # its help is printed
            say_error(f"{said}{_came(error, arguments)} (cswap --help)")
            return 2
        if type(error).__name__ == "Abort":
            say_error("interrupted")
            return INTERRUPTED
        if hasattr(error, "exit_code"):
            return int(error.exit_code)
        if line := _by_the_system(error):
            return _failed(line, error)
        return _failed(f"the run failed ({type(error).__name__}: {str(error)[:200]})", error)


def _flushed(status: int) -> int:
    """The exit status once what was printed is out; Python itself would complain of a closed pipe or a full disk as it ends."""
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            say_error(f"the run failed: standard output: {error.strerror}")
        return status or 1
    return status


def run() -> NoReturn:
    """Console entry point."""
    sys.exit(_flushed(main()))
