"""What an exit handler asks of vcpu_run, with names where Linux has 1, 0 and -errno."""

from __future__ import annotations

from enum import Enum
from typing import Final


class Run(Enum):
    """What an exit handler asks of vcpu_run. A broken host is an exception, not a Run."""

    REENTER_GUEST = "handled here, go on"
    EXIT_USERSPACE = "kvm_run says what is needed"


REENTER_GUEST: Final = Run.REENTER_GUEST
EXIT_USERSPACE: Final = Run.EXIT_USERSPACE
"""The same two under names that the run loop finds in one step."""
