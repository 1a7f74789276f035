"""The short way of a port access and the long one come to the same, instruction by instruction."""

from __future__ import annotations

import pytest

from vmxsim.arch.vmcs_fields import VmcsField
from vmxsim.clock import VirtualClock
from vmxsim.kvm.api import Kvm
from vmxsim.probes import Instrument, Probes


class Watcher(Instrument):
    """Watching exits switches the short way off."""

    def vm_exit(self, vcpu_id: int, now: int, rip: int, exit: object) -> None:
        pass


# L: out 0x80, al; out dx, ax; in al, 0x60; in eax, dx; out 0x21, al; in al, 0x21; out 0x7e, al;
# inc al; loop L; hlt
CODE = bytes.fromhex("e680" "ef" "e460" "66ed" "e621" "e421" "e67e" "fec0" "e2ef" "f4")


def history(watched: bool, irqchip: bool) -> list[tuple[object, ...]]:
    probes = Probes()
    if watched:
        probes.add(Watcher())
    vm = Kvm(clock=VirtualClock(), probes=probes).create_vm()
    ram = bytearray(65536)
    ram[0x1000 : 0x1000 + len(CODE)] = CODE
    vm.set_user_memory_region(0, 0, ram)
    if irqchip:
        vm.create_irqchip()
    vcpu = vm.create_vcpu(0)
    sregs = vcpu.get_sregs()
    sregs.cs.base = sregs.cs.selector = 0
    vcpu.set_sregs(sregs)
    regs = vcpu.get_regs()
    regs.rip, regs.rflags, regs.rcx, regs.rdx, regs.rax = 0x1000, 2, 4, 0x1F0, 0x11223344
    vcpu.set_regs(regs)
    log: list[tuple[object, ...]] = []
    for turn in range(60):
        vcpu.kvm_run.immediate_exit = 0
        vm.report_dead_halt = True
        vcpu.run()
        exit = vcpu.kvm_run.exit
        regs = vcpu.get_regs()
        qualification = vcpu._vcpu.processor.vmread(VmcsField.EXIT_QUALIFICATION)
        log.append((exit, regs.rip, regs.rax, qualification, vcpu.kvm_run.if_flag))
        if vcpu.kvm_run.exit_reason != 2:
            break
        if exit.direction == 0:
            vcpu.shared[4096 : 4096 + exit.size] = bytes([0x90 + turn] * exit.size)
    log.append((vcpu.stat.by_reason(), dict(vcpu.stat.userspace_exits)))
    log.append(tuple((port, row.userspace_in, row.userspace_out, row.kernel_in, row.kernel_out)
                     for port, row in sorted(vcpu.stat.ports.items())))  # fmt: skip
    vm.close()
    return log


@pytest.mark.parametrize("irqchip", [False, True])
def test_both_ways_have_the_same_history(irqchip: bool) -> None:
    short, long = history(False, irqchip), history(True, irqchip)
    assert short == long
    assert len(short) > 20


def test_moving_rip_in_userspace_abandons_a_bounced_access() -> None:
    vm = Kvm(clock=VirtualClock()).create_vm()
    ram = bytearray(65536)
    ram[0x1000:0x1005] = bytes.fromhex("e680ebfcf4")
    vm.set_user_memory_region(0, 0, ram)
    vcpu = vm.create_vcpu(0)
    sregs = vcpu.get_sregs()
    sregs.cs.base = sregs.cs.selector = 0
    vcpu.set_sregs(sregs)
    regs = vcpu.get_regs()
    regs.rip, regs.rflags = 0x1000, 2
    vcpu.set_regs(regs)
    for _ in range(3):
        vcpu.run()
        assert vcpu.kvm_run.exit_reason == 2
    regs = vcpu.get_regs()
    assert regs.rip == 0x1000
    regs.rip = 0x1004
    vcpu.set_regs(regs)
    vcpu.run()
    assert (vcpu.kvm_run.exit_reason, vcpu.get_regs().rip) == (5, 0x1005)
    vm.close()
