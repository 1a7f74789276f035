"""Whatever a guest does to a device, nothing breaks, and what it reads fits the access."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmxsim.clock import VirtualClock
from vmxsim.vmm.devices.base import Device
from vmxsim.vmm.devices.cmos import Cmos
from vmxsim.vmm.devices.debugcon import DebugCon
from vmxsim.vmm.devices.debugexit import DebugExit
from vmxsim.vmm.devices.port80 import Port80
from vmxsim.vmm.devices.reset import KeyboardController, Port92, ResetControl
from vmxsim.vmm.devices.serial import Serial


def ignore(*_: object) -> None:
    pass


DEVICES: dict[str, tuple[Callable[[VirtualClock], Device], int]] = {
    "serial": (lambda clock: Serial(ignore), 8),
    "cmos": (lambda clock: Cmos(clock, 1 << 30), 2),
    "debugcon": (lambda clock: DebugCon(ignore), 1),
    "debugexit": (lambda clock: DebugExit(ignore), 4),
    "port80": (lambda clock: Port80(), 1),
    "keyboard": (lambda clock: KeyboardController(ignore), 5),
    "port92": (lambda clock: Port92(ignore), 1),
    "reset control": (lambda clock: ResetControl(ignore), 1),
}

step = st.tuples(
    st.integers(0, 7),
    st.one_of(st.none(), st.integers(0, 255), st.sampled_from([0, 2, 4, 8, 9, 10, 11, 12, 0x32])),
    st.sampled_from([0, 1_000, 10**6, 10**9, 10**13]),
)


@pytest.mark.parametrize("name", DEVICES)
@settings(max_examples=60, deadline=None)
@given(steps=st.lists(step, max_size=40))
def test_nothing_a_guest_does_breaks_a_device(
    name: str, steps: list[tuple[int, int | None, int]]
) -> None:
    clock = VirtualClock()
    make, registers = DEVICES[name]
    device = make(clock)
    values = []
    for offset, value, passed in steps:
        if value is None:
            values.append(device.read(offset % registers, 1))
        else:
            device.write(offset % registers, 1, value)
        clock.charge(passed)
        clock.run_due()
    device.reset()
    values += [device.read(offset, 1) for offset in range(registers)]
    assert all(0 <= value <= 0xFF for value in values)
