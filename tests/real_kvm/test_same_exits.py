"""Small guests on our KVM and on the host's: the same userspace exits, the same registers.

Only what userspace sees is compared: VMX exit reasons stay inside a real kernel, and RIP at an exit
is settled only by the next entry, so registers are read where the guest ends.
"""

from __future__ import annotations

import errno
import mmap
import threading
import time
from typing import NamedTuple, Protocol

import pytest

from vmxsim.errors import KvmError
from vmxsim.kvm import uapi
from vmxsim.tools import realkvm

pytestmark = [
    pytest.mark.real_kvm,
    pytest.mark.skipif(bool(realkvm.why_not()), reason=realkvm.why_not()),
]

RAM_SIZE, CODE, DATA, STACK = 0x8000, 0x1000, 0x1100, 0x2000
HANG_S = 10.0
HANDLER = "89 e5 8b 5e 00 e6 81 f4"
"""At DATA: the return address to BX, an OUT that shows it was here, the end."""

GUESTS = {
    # bytes                                                     guest
    "out imm8, out dx":   "b0 48 ba f8 03 ee e6 80 f4",
    "out 16":             "b8 34 12 e7 80 f4",
    "out 32":             "66 b8 78 56 34 12 ba 02 04 66 ef f4",
    "in 8":               "66 b8 ff ff ff ff e4 60 f4",
    "in 16":              "66 b8 ff ff ff ff e5 60 f4",
    "in 32":              "66 b8 ff ff ff ff 66 e5 60 f4",
    "rep outsb":          "fc be 00 11 b9 04 00 ba f8 03 f3 6e f4",
    "rep insb":           "fc bf 00 12 b9 04 00 ba 60 00 f3 6c 66 a1 00 12 f4",
    "rep insw, backwards": "fd bf 06 12 b9 03 00 ba 60 00 f3 6d fc 66 a1 02 12 f4",
    "outsd":              "be 00 11 ba f8 03 66 6f f4",
    "three times out":    "b9 03 00 b0 2e e6 80 49 75 fb f4",
    "mmio write":         "b0 11 a2 00 a0 b8 33 22 a3 10 a0 66 b8 77 66 55 44 66 a3 20 a0 f4",
    "mmio read":          "a0 00 a0 8b 1e 10 a0 66 8b 0e 20 a0 f4",
    "mmio or":            "b0 01 08 06 00 a0 9c 5b f4",
    "mmio rep movsb":     "fc be 00 11 bf 00 a0 b9 03 00 f3 a4 f4",
    "mmio xchg":          "b8 5a 5a 87 06 00 a0 f4",
    "mmio movzx, movsx":  "66 b9 ff ff ff ff 66 0f b6 0e 01 a0 66 0f be 16 02 a0 f4",
    "mmio test, cmp":     "f6 06 00 a0 80 9c 5b 81 3e 10 a0 34 12 9c 59 f4",
    "mmio rep stosd":     "fc bf 00 a0 b9 02 00 66 b8 04 03 02 01 f3 66 ab f4",
    "rdmsr of nothing":   "c7 06 34 00 00 11 c7 06 36 00 00 00 66 b9 45 23 01 00 0f 32 f4",
    "division by zero":   "c7 06 00 00 00 11 c7 06 02 00 00 00 b0 01 30 db f6 f3 f4",
    "ud2":                "c7 06 18 00 00 11 c7 06 1a 00 00 00 0f 0b f4",
    "int3":               "c7 06 0c 00 00 11 c7 06 0e 00 00 00 cc f4",
    "int 0x21":           "c7 06 84 00 00 11 c7 06 86 00 00 00 b0 07 cd 21 f4",
    "sti, hlt":           "fb f4",
    "pushf":              "31 c0 f9 9c 58 f4",
    "smsw, mov cr0":      "0f 01 e0 0f 20 c3 f4",
    "triple fault":       "0f 01 1e 80 11 0f 0b",
}  # fmt: skip

REGISTERS = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp", "rip", "rflags")


class AnyVcpu(Protocol):
    """What both vCPUs are."""

    kvm_run: uapi.KvmRun

    def run(self) -> None: ...
    def kick(self) -> None: ...
    def get_regs(self) -> uapi.KvmRegs: ...
    def set_regs(self, regs: uapi.KvmRegs) -> None: ...
    def get_sregs(self) -> uapi.KvmSregs: ...
    def set_sregs(self, sregs: uapi.KvmSregs) -> None: ...
    def close(self) -> None: ...


class Story(NamedTuple):
    """All that userspace saw of a guest."""

    exits: list[uapi.KvmExit]
    registers: dict[str, int]


def ours() -> realkvm.RealKvm:
    from vmxsim.kvm.api import Kvm

    return Kvm()  # type: ignore[return-value]  # the same methods, which is the point


def boot(kvm: realkvm.RealKvm, code: bytes, irqchip: bool = False) -> AnyVcpu:
    """A vCPU in real mode, at CODE, with zeroed registers."""
    ram = mmap.mmap(-1, RAM_SIZE)
    ram[CODE : CODE + len(code)] = code
    handler = bytes.fromhex(HANDLER)
    ram[DATA : DATA + len(handler)] = handler
    vm = kvm.create_vm()
    if irqchip:
        vm.create_irqchip()
    vm.set_user_memory_region(0, 0, memoryview(ram))
    vcpu = vm.create_vcpu(0)
    sregs = vcpu.get_sregs()
    sregs.cs.base = sregs.cs.selector = 0
    vcpu.set_sregs(sregs)
    vcpu.set_regs(uapi.KvmRegs(rip=CODE, rsp=STACK, rflags=2))
    return vcpu


def tell(kvm: realkvm.RealKvm, code: bytes) -> Story:
    """Run to the end, answering every question with 0x80, 0x81, ...; a hang ends with EINTR."""
    vcpu, exits = boot(kvm, code), []
    watchdog = threading.Timer(HANG_S, vcpu.kick)
    watchdog.start()
    for _ in range(20):
        vcpu.run()
        exit = vcpu.kvm_run.exit
        exits.append(exit)
        if isinstance(exit, uapi.KvmExitIo):
            if exit.direction is uapi.Direction.IN:
                vcpu.kvm_run.answer(bytes(range(0x80, 0x80 + exit.size * exit.count)))
        elif isinstance(exit, uapi.KvmExitMmio):
            if exit.data is None:
                vcpu.kvm_run.answer(bytes(range(0x80, 0x80 + exit.size)))
        else:
            break
    watchdog.cancel()
    watchdog.join()
    regs = vcpu.get_regs()
    story = Story(exits, {name: getattr(regs, name) for name in REGISTERS})
    vcpu.close()
    return story


@pytest.mark.parametrize("name", GUESTS)
def test_the_same_exits_and_the_same_registers(name: str) -> None:
    code = bytes.fromhex(GUESTS[name])
    real, simulated = tell(realkvm.RealKvm(), code), tell(ours(), code)
    assert simulated.exits == real.exits
    if not isinstance(real.exits[-1], uapi.KvmExitShutdown):
        assert simulated.registers == real.registers


def both() -> list[pytest.param]:
    return [pytest.param(realkvm.RealKvm, id="real"), pytest.param(ours, id="simulated")]


@pytest.mark.parametrize("make", both())
def test_immediate_exit_is_eintr_and_completes_an_in(make) -> None:  # noqa: ANN001
    vcpu = boot(make(), bytes.fromhex("e4 60 f4"))
    vcpu.run()
    vcpu.kvm_run.answer(b"\x55")
    vcpu.kvm_run.immediate_exit = 1
    with pytest.raises(KvmError) as caught:
        vcpu.run()
    assert caught.value.errno == errno.EINTR
    regs = vcpu.get_regs()
    assert (regs.rax & 0xFF, regs.rip) == (0x55, CODE + 2)
    vcpu.kvm_run.immediate_exit = 0
    vcpu.run()
    assert vcpu.kvm_run.exit_reason == uapi.KVM_EXIT_HLT


@pytest.mark.parametrize("make", both())
def test_a_kick_ends_a_loop(make) -> None:  # noqa: ANN001
    vcpu = boot(make(), bytes.fromhex("eb fe"))
    kicker = threading.Timer(0.05, vcpu.kick)
    kicker.start()
    with pytest.raises(KvmError) as caught:
        vcpu.run()
    kicker.join()
    assert caught.value.errno == errno.EINTR
    assert vcpu.get_regs().rip == CODE


@pytest.mark.parametrize("make", both())
def test_hlt_waits_inside_the_kernel_when_the_irqchip_is_there(make) -> None:  # noqa: ANN001
    vcpu = boot(make(), bytes.fromhex("fb f4"), irqchip=True)
    started = time.monotonic()
    kicker = threading.Timer(0.1, vcpu.kick)
    kicker.start()
    with pytest.raises(KvmError) as caught:
        vcpu.run()
    kicker.join()
    assert caught.value.errno == errno.EINTR
    assert time.monotonic() - started >= 0.1


@pytest.mark.parametrize("make", both())
def test_overlapping_slots_are_eexist(make) -> None:  # noqa: ANN001
    vm = make().create_vm()
    vm.set_user_memory_region(0, 0, memoryview(mmap.mmap(-1, 0x4000)))
    with pytest.raises(KvmError) as caught:
        vm.set_user_memory_region(1, 0x3000, memoryview(mmap.mmap(-1, 0x4000)))
    assert caught.value.errno == errno.EEXIST


@pytest.mark.parametrize("make", both())
def test_a_vcpu_number_is_used_once(make) -> None:  # noqa: ANN001
    vm = make().create_vm()
    vm.create_vcpu(0)
    with pytest.raises(KvmError) as caught:
        vm.create_vcpu(0)
    assert caught.value.errno == errno.EEXIST


@pytest.mark.parametrize("make", both())
def test_registers_come_back_as_they_were_set(make) -> None:  # noqa: ANN001
    vcpu = boot(make(), b"\xf4")
    regs = uapi.KvmRegs(**{name: 0x1111 * (i + 1) for i, name in enumerate(REGISTERS[:8])})
    regs.rip, regs.rflags = 0x1234, 0x246
    vcpu.set_regs(regs)
    assert bytes(vcpu.get_regs()) == bytes(regs)
    debug = uapi.KvmDebugregs(dr6=0xFFFF0FF0, dr7=0x400)
    debug.db[0] = 0x1000
    vcpu.set_debugregs(debug)
    assert bytes(vcpu.get_debugregs()) == bytes(debug)
    assert vcpu.set_msrs([(0x174, 8), (0x175, 0x5000)]) == 2
    assert vcpu.get_msrs([0x174, 0x175]) == {0x174: 8, 0x175: 0x5000}
    assert vcpu.get_mp_state() == uapi.KVM_MP_STATE_RUNNABLE


@pytest.mark.parametrize("make", both())
def test_a_slot_can_be_deleted_and_put_elsewhere(make) -> None:  # noqa: ANN001
    vm, memory = make().create_vm(), memoryview(mmap.mmap(-1, 0x4000))
    vm.set_user_memory_region(0, 0, memory)
    vm.set_user_memory_region(0, 0, None)
    vm.set_user_memory_region(0, 0x10000, memory)
    with pytest.raises(KvmError) as caught:
        vm.set_user_memory_region(1, 0x10000, memoryview(mmap.mmap(-1, 0x1000)))
    assert caught.value.errno == errno.EEXIST


@pytest.mark.parametrize(
    ("do", "code"),
    [
        (lambda vm: vm.set_user_memory_region(0, 0x123, memoryview(mmap.mmap(-1, 4096))), "EINVAL"),
        (lambda vm: vm.create_irqchip() or vm.create_irqchip(), "EEXIST"),
        (lambda vm: vm.irq_line(1, 1), "ENXIO"),
        (lambda vm: vm.create_irqchip() or vm.create_vcpu(0).interrupt(32), "ENXIO"),
        (lambda vm: vm.create_vcpu(0).interrupt(256), "EINVAL"),
        (lambda vm: vm.create_vcpu(0) and vm.create_irqchip(), "EINVAL"),
    ],
)
@pytest.mark.parametrize("make", both())
def test_refusals_have_the_kernels_errno(make, do, code) -> None:  # noqa: ANN001
    with pytest.raises(KvmError) as caught:
        do(make().create_vm())
    assert errno.errorcode[caught.value.errno] == code
