"""Every exception vmxsim raises on purpose; each docstring ends with what to do about it.

Only a wrong program, a broken host or bad input becomes an exception. What a *guest* does wrong is
a value (an event to inject), and what a *VMCS* has wrong is a value too (VMfail, entry failure).
"""

from __future__ import annotations


class VmxsimError(Exception):
    """Anything vmxsim refuses to do. Catch this one to catch them all."""


class EngineError(VmxsimError):
    """The engine or the host failed. Check the versions; if it stays, report RIP and bytes."""


class InputError(VmxsimError):
    """An image, listing, number or option cannot be used. Correct it and run again."""


class ConfigError(VmxsimError):
    """The machine is wired wrongly. Change the configuration that the message names."""


class PortConflict(ConfigError):
    """Two devices want the same I/O ports. Give one another base, or leave it out."""


class KvmError(VmxsimError):
    """An ioctl was refused, as /dev/kvm would have. Look its errno up in the KVM API document."""

    def __init__(self, errno: int, message: str = "") -> None:
        super().__init__(message or f"errno {errno}")
        self.errno = errno
