"""Giving back what can be given back, without fine-tuning."""

from cswap.recovery import bias, lstsq, merge  # noqa: F401 — they register themselves
from cswap.recovery.batchnorm import reestimated
from cswap.recovery.recover import Recovery, recover, recovered

__all__ = ["Recovery", "recover", "recovered", "reestimated"]
