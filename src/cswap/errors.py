"""Everything cswap raises on purpose.

CswapError                  base class; `exit_status` is what the command ends with
├── InputError       (2)    what the user gave is wrong: says what was expected and what came
│   ├── ModelError          model spec, factory or weights
│   ├── DataError           dataset, calibration set, labels, an unreadable sample
│   ├── TargetError         a target outside its range, or beyond what can be reached
│   ├── ArtifactError       a folder that is no whole, unchanged artifact
│   └── MissingPartError    an optional library is not installed: says which install brings it
└── RunError         (1)    the run itself failed
    ├── StructureError      the network cannot be analysed
    └── MismatchError       masked and pruned network disagree; nothing was written
"""


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


class TargetError(InputError):
    """A target is malformed, out of range or out of reach."""


class ArtifactError(InputError):
    """A folder is not a whole, unchanged artifact."""


class MissingPartError(InputError):
    """An optional library is needed and absent."""


class RunError(CswapError):
    """The run itself failed."""


class StructureError(RunError):
    """The network's structure cannot be analysed."""


class MismatchError(RunError):
    """Masked and pruned network disagree."""
