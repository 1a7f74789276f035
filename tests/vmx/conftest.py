"""A VMCS that enters, and a processor in VMX operation with it, on a scripted cpu."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from vmxsim.clock import VirtualClock
from vmxsim.cpu.scripted import ScriptedCpu, Step
from vmxsim.vmx.processor import Processor
from vmxsim.vmx.vmcs import Vmcs

from .valid_guests import MEMORY, VMCS, VMXON, long_mode_guest


@pytest.fixture
def valid_vmcs() -> Vmcs:
    """A VMCS that passes every check: a 64-bit guest with EPT and unrestricted guest."""
    vmcs = Vmcs(VMCS)
    for field, wanted in long_mode_guest().items():
        vmcs.write(field, wanted)
    return vmcs


MakeProcessor = Callable[..., tuple[Processor, ScriptedCpu]]


@pytest.fixture
def processor_with(clock: VirtualClock) -> MakeProcessor:
    """Make a processor, ready to enter, whose guest is a script of traps."""

    def make(
        traps: list[Step] | None = None, fields: dict[int, int] | None = None
    ) -> tuple[Processor, ScriptedCpu]:
        cpu = ScriptedCpu(traps or [])
        cpu.memory.map(0, bytearray(MEMORY))
        processor = Processor(cpu, clock)
        assert processor.vmxon(VMXON) is None
        assert processor.vmclear(VMCS) is None
        assert processor.vmptrld(VMCS) is None
        for field, wanted in (long_mode_guest() if fields is None else fields).items():
            assert processor.vmwrite(field, wanted) is None
        return processor, cpu

    return make
