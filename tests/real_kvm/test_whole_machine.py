"""The whole userspace floor on the host's KVM: the same programs, the same output."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmxsim.tools import realkvm
from vmxsim.vmm.config import Config
from vmxsim.vmm.machine import Machine
from vmxsim.vmm.runstate import Stop

pytestmark = [
    pytest.mark.real_kvm,
    pytest.mark.skipif(bool(realkvm.why_not()), reason=realkvm.why_not()),
]

PROGRAMS = Path(__file__).resolve().parents[2] / "fixtures/programs"


def output_of(name: str, kvm: realkvm.RealKvm | None) -> tuple[bytes, Stop, dict[str, int]]:
    with Machine(Config(timeout_s=20), kvm=kvm) as machine:
        machine.load(str(PROGRAMS / name))
        result = machine.run()
        general = {name: getattr(result.regs, name) for name, _ in result.regs._fields_}
        return bytes(machine.serial_output), result.stop, general


@pytest.mark.parametrize("name", ["hello.lst", "mmio.lst", "self_modifying.lst"])
def test_a_program_does_the_same_on_both(name: str) -> None:
    real = output_of(name, realkvm.RealKvm())
    assert real[1] is Stop.HALTED
    assert output_of(name, None) == real


def test_a_guest_that_waits_is_stopped_in_time() -> None:
    with Machine(Config(timeout_s=0.2), kvm=realkvm.RealKvm()) as machine:
        machine.load(bytes.fromhex("eb fe"))
        assert machine.run().stop is Stop.TIMEOUT
