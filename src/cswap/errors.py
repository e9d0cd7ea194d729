"""Everything cswap raises on purpose.

CswapError                  base class; `exit_status` is what the command ends with
├── InputError       (2)    what the user gave is wrong: says what was expected and what came
│   ├── ModelError          model spec, factory or weights
│   ├── DataError           dataset, calibration set, labels, an unreadable sample
│   ├── MethodError         a method has nothing to say of this network or task; another may
│   ├── TargetError         a target outside its range, or beyond what can be reached
│   ├── ArtifactError       a folder that is no whole, unchanged artifact
│   └── MissingPartError    an optional library is not installed: says which install brings it
└── RunError         (1)    the run itself failed
    ├── StructureError      the network cannot be analysed
    └── MismatchError       masked and pruned network disagree; nothing was written
"""

from typing import Self


class CswapWarning(UserWarning):
    """Something the user should know, and that stops nothing."""


class CswapError(Exception):
    """Base of all errors of this package; the message is one line."""

    exit_status = 1


class InputError(CswapError):
    """What the user gave is wrong."""

    exit_status = 2


class ModelError(InputError):
    """A model spec, a factory or weights cannot be used."""


class DataError(InputError):
    """A dataset, a calibration set, labels or one sample cannot be used."""


class MethodError(InputError):
    """A method has nothing to say of this network or task; another may."""


class TargetError(InputError):
    """A target is malformed, out of range or out of reach."""


class ArtifactError(InputError):
    """A folder is not a whole, unchanged artifact."""


class MissingPartError(InputError):
    """An optional library is needed, and absent or broken."""

    @classmethod
    def of(cls, error: ImportError, need: str, extra: str, library: str) -> Self:
        """What needs the library, and which install brings it; what the import said, where it was not of the library's absence."""
        line = (str(error).splitlines() or [""])[0][:160]
        other = "" if isinstance(error, ModuleNotFoundError) and error.name == library else f" (importing it: {line})"
        return cls(f"{need}: pip install 'cswap[{extra}]'{other}")


class RunError(CswapError):
    """The run itself failed."""


class StructureError(RunError):
    """The network's structure cannot be analysed."""


class MismatchError(RunError):
    """Masked and pruned network disagree."""


_NO_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "cannot allocate memory",
    "bad_alloc",
    "could not create a memory",
)


def out_of_memory(error: BaseException) -> bool:
    """Whether the machine had no memory left: what Python, PyTorch and oneDNN raise then on the CPU."""
    told = str(error).lower().strip()
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        and (any(t in told for t in _NO_MEMORY) or told.endswith("could not create a primitive"))
    )


def pass_on_out_of_memory(error: BaseException) -> None:
    """Raise it again when the machine had no memory left: that says nothing of the network that was tried."""
    if out_of_memory(error):
        raise error
