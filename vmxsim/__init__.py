"""vmxsim runs a small x86 guest in user space and shows every VM exit it takes.

Names below load on first use, so that importing facts never loads the engine.

The house has six floors. Calls go down, records come up; a floor imports only floors below it::

    6 tools/   watch, count, drive, test     cli explain trace stat listing realkvm
    5 vmm/     what QEMU does                devices, loaders, the machine, vCPU threads
    4 kvm/     what Linux does               the run loop, the exit handlers, the in-kernel chips
    3 vmx/     what the processor does       VMCS, "does it exit?", entry and exit, delivery
    2 cpu/     what runs the instructions    Cpu.run() -> Trap; the only floor that knows Unicorn
    1 arch/    what the manual says          registers, exit reasons, fields, controls, paging
      ground   errors.py clock.py probes.py  visible to every floor

A wall is where one vocabulary ends: arch, cpu and vmx speak the Intel SDM's, kvm speaks Linux's,
vmm speaks QEMU's. ``tests/test_architecture.py`` keeps the walls standing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from vmxsim.arch.exit_reasons import ExitReason as ExitReason
    from vmxsim.arch.vmcs_fields import VmcsField as VmcsField
    from vmxsim.clock import HostClock as HostClock
    from vmxsim.clock import VirtualClock as VirtualClock
    from vmxsim.errors import ConfigError as ConfigError
    from vmxsim.errors import EngineError as EngineError
    from vmxsim.errors import InputError as InputError
    from vmxsim.errors import KvmError as KvmError
    from vmxsim.errors import VmxsimError as VmxsimError
    from vmxsim.kvm.api import Kvm as Kvm
    from vmxsim.probes import Instrument as Instrument
    from vmxsim.probes import Probes as Probes
    from vmxsim.tools.explain import explain as explain
    from vmxsim.tools.listing import annotate as annotate
    from vmxsim.vmm.config import Config as Config
    from vmxsim.vmm.machine import Machine as Machine

__version__: Final = "0.1.0"

_HOME: Final = {
    "Config": "vmxsim.vmm.config",
    "ConfigError": "vmxsim.errors",
    "EngineError": "vmxsim.errors",
    "ExitReason": "vmxsim.arch.exit_reasons",
    "HostClock": "vmxsim.clock",
    "InputError": "vmxsim.errors",
    "Instrument": "vmxsim.probes",
    "Kvm": "vmxsim.kvm.api",
    "KvmError": "vmxsim.errors",
    "Machine": "vmxsim.vmm.machine",
    "Probes": "vmxsim.probes",
    "VirtualClock": "vmxsim.clock",
    "VmcsField": "vmxsim.arch.vmcs_fields",
    "VmxsimError": "vmxsim.errors",
    "annotate": "vmxsim.tools.listing",
    "explain": "vmxsim.tools.explain",
}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> object:
    """Load a public name's module when the name is first asked for."""
    if name not in _HOME:
        raise AttributeError(f"module 'vmxsim' has no attribute {name!r}")
    value: object = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
