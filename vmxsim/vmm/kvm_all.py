"""KVM as userspace drives it: set-up, registers, and the loop around KVM_RUN.

QEMU: accel/kvm/kvm-all.c and, for the x86 part, target/i386/kvm.c (4.1; now target/i386/kvm/kvm.c).
Left out: coalesced MMIO, dirty logging, ioeventfds, SMM, MCE, migration of vCPU state.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from enum import Enum
from errno import EAGAIN, EINTR

from vmxsim.errors import ConfigError, KvmError
from vmxsim.kvm import uapi
from vmxsim.vmm.accel import Kvm
from vmxsim.vmm.memory import (
    AddressSpace,
    MemTxResult,
    Ram,
    UnclaimedAccess,
    address_space_rw,
)
from vmxsim.vmm.runstate import CPUState, Ending, KVMState, Stop, SystemState, ending

KVM_RUN_EXIT = struct.Struct("<I20xBBHIQ")
"""From kvm_run.exit_reason on: exit_reason, io.direction, io.size, io.port, io.count,
io.data_offset. One unpack, since ctypes makes an object for every look at a nested field."""
EXIT_REASON_OFFSET = 8

ITEMS = {size: struct.Struct(code) for size, code in ((1, "<B"), (2, "<H"), (4, "<I"), (8, "<Q"))}
"""How an item of so many bytes lies in the shared pages."""

SUBERRORS = {
    uapi.KVM_INTERNAL_ERROR_EMULATION: "emulation failure",
    uapi.KVM_INTERNAL_ERROR_SIMUL_EX: "two exceptions at once",
    uapi.KVM_INTERNAL_ERROR_DELIVERY_EV: "an exit while an event was delivered",
    uapi.KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON: "an exit reason it does not know",
}


class CpuExec(Enum):
    """Why kvm_cpu_exec came back. QEMU: EXCP_INTERRUPT, EXCP_HLT."""

    INTERRUPT = "somebody wants the thread"
    HLT = "the guest waits for an interrupt"
    STOP = "the run has ended"


# -- set-up ----------------------------------------------------------------------------------------


def kvm_init(kvm: Kvm, irqchip: bool) -> KVMState:
    """Open a VM. In QEMU the first thing an accelerator does."""
    version = kvm.get_api_version()
    if version != uapi.KVM_API_VERSION:
        raise ConfigError(f"KVM API version {version}; this is for {uapi.KVM_API_VERSION}")
    vm = kvm.create_vm()
    if irqchip:
        vm.create_irqchip()
    if hasattr(vm, "report_dead_halt"):
        # Real KVM sleeps for ever in HLT with interrupts off; a run should end there.
        vm.report_dead_halt = True
    return KVMState(kvm, vm, irqchip)


def kvm_set_phys_mem(state: KVMState, ram: Ram, gpa: int = 0) -> None:
    """Give RAM to the guest: one slot, mapped without a copy."""
    state.vm.set_user_memory_region(state.slots, gpa, ram.view)
    state.slots += 1


def kvm_init_vcpu(cpu: CPUState) -> None:
    """Create the vCPU and map its kvm_run; called first thing in the vCPU's own thread."""
    state = cpu.system.kvm
    if state is None:
        raise ConfigError("no VM to create a vCPU in: load an image first")
    cpu.vcpu = state.vm.create_vcpu(cpu.index)
    cpu.kvm_run = cpu.vcpu.kvm_run
    cpu.run = cpu.vcpu.run
    kvm_arch_init_vcpu(cpu)


def kvm_arch_init_vcpu(cpu: CPUState) -> None:
    """Let the guest see every CPUID feature that KVM can give it."""
    if cpu.vcpu is not None and cpu.system.kvm is not None:
        cpu.vcpu.set_cpuid2(cpu.system.kvm.kvm.get_supported_cpuid())


def kvm_destroy_vcpu(cpu: CPUState) -> None:
    """Close the vCPU, from its own thread."""
    vcpu, cpu.vcpu, cpu.kvm_run, cpu.run = cpu.vcpu, None, None, None
    if vcpu is not None:
        vcpu.close()


def kvm_arch_put_registers(cpu: CPUState) -> None:
    """Hand the registers that userspace prepared to KVM.

    QEMU: target/i386/kvm.c. Left out: XSAVE, XCRs, MSRs, pending events, debug registers.
    """
    assert cpu.vcpu is not None
    if cpu.sregs is not None:
        cpu.vcpu.set_sregs(cpu.sregs)
    if cpu.regs is not None:
        cpu.vcpu.set_regs(cpu.regs)
    cpu.vcpu_dirty = False


def kvm_arch_get_registers(cpu: CPUState) -> None:
    """Fetch the registers into cpu.regs and cpu.sregs; only while the vCPU is stopped."""
    if cpu.vcpu is not None and not cpu.vcpu_dirty:
        cpu.regs, cpu.sregs = cpu.vcpu.get_regs(), cpu.vcpu.get_sregs()


# -- the loop --------------------------------------------------------------------------------------


def kvm_cpu_exec(cpu: CPUState) -> CpuExec:
    """Run the guest until somebody wants the thread, it halts, or the run ends.

    Called with the BQL held, and holds it except inside KVM_RUN. QEMU: accel/kvm/kvm-all.c. An OUT
    that ends the run is completed by one more KVM_RUN, which returns at once, as in QEMU.
    """
    if cpu.halted:
        return CpuExec.HLT
    kvm_run, run = cpu.kvm_run, cpu.run
    assert kvm_run is not None
    assert run is not None
    shared, unpack = kvm_run.shared, KVM_RUN_EXIT.unpack_from
    release, acquire = cpu.system.bql.release, cpu.system.bql.acquire
    while True:
        if cpu.vcpu_dirty:
            kvm_arch_put_registers(cpu)
        if cpu.interrupts:
            kvm_arch_pre_run(cpu, kvm_run)
        if cpu.exit_request:
            kvm_run.immediate_exit = 1
        release()
        try:
            run()
        except KvmError as error:
            if error.errno not in (EINTR, EAGAIN):
                raise
            kvm_run.immediate_exit = 0
            cpu.exit_request = False
            return CpuExec.INTERRUPT
        finally:
            acquire()
        reason, direction, size, port, count, offset = unpack(shared, EXIT_REASON_OFFSET)
        if reason == uapi.KVM_EXIT_IO:
            kvm_handle_io(cpu, port, shared, offset, direction, size, count)
            continue
        outcome = EXIT_HANDLERS.get(reason, handle_unknown)(cpu, kvm_run)
        if outcome is not None:
            cpu.exit_request = False
            return outcome


def kvm_arch_pre_run(cpu: CPUState, kvm_run: uapi.KvmRun) -> None:
    """Inject what userspace queued, or ask to be told when the guest can take it."""
    if kvm_run.ready_for_interrupt_injection and cpu.vcpu is not None:
        cpu.vcpu.interrupt(cpu.interrupts.popleft())
        # One at a time: the flag speaks of the state before this one was queued.
        kvm_run.ready_for_interrupt_injection = 0
    kvm_run.request_interrupt_window = int(bool(cpu.interrupts))


def kvm_handle_io(
    cpu: CPUState,
    port: int,
    data: memoryview,
    offset: int,
    direction: int,
    size: int,
    count: int,
) -> None:
    """Carry out IN, OUT, INS or OUTS: `count` items of `size` bytes, at `offset` in `data`.

    QEMU calls address_space_rw for each item. So do we, after a look at the table of single
    accesses that exactly one device takes.
    """
    ports = cpu.system.ports
    if direction == uapi.KVM_EXIT_IO_OUT:
        if target := ports.writes.get(port << 4 | size):
            write, register = target
            if size == 1 and count == 1:
                write(register, 1, data[offset])
                return
            for (value,) in ITEMS[size].iter_unpack(data[offset : offset + size * count]):
                write(register, size, value)
            return
    elif target_in := ports.reads.get(port << 4 | size):
        read, register = target_in
        if size == 1 and count == 1:
            data[offset] = read(register, 1) & 0xFF
            return
        mask, pack_into = (1 << 8 * size) - 1, ITEMS[size].pack_into
        for at in range(offset, offset + size * count, size):
            pack_into(data, at, read(register, size) & mask)
        return
    is_write = direction == uapi.KVM_EXIT_IO_OUT
    for at in range(offset, offset + size * count, size):
        item = data[at : at + size]
        if address_space_rw(ports, port, item, is_write) is MemTxResult.DECODE_ERROR:
            _unclaimed(cpu, ports, port, item, is_write)


def handle_mmio(cpu: CPUState, kvm_run: uapi.KvmRun) -> CpuExec | None:
    """KVM_EXIT_MMIO."""
    gpa, _, length, is_write = uapi.MMIO_EXIT.unpack_from(kvm_run.shared, uapi.EXIT_OFFSET)
    memory, start = cpu.system.memory, uapi.MMIO_DATA_OFFSET
    if is_write and (target := memory.writes.get(gpa << 4 | length)):
        target[0](target[1], length, ITEMS[length].unpack_from(kvm_run.shared, start)[0])
        return None
    data = kvm_run.shared[start : start + length]
    if address_space_rw(memory, gpa, data, bool(is_write)) is MemTxResult.DECODE_ERROR:
        _unclaimed(cpu, memory, gpa, data, bool(is_write))
    return None


def _unclaimed(
    cpu: CPUState, space: AddressSpace, address: int, data: memoryview, is_write: bool
) -> None:
    """Apply the policy for addresses that nobody claims: a probe, or an exception."""
    system, size = cpu.system, len(data)
    value = int.from_bytes(data, "little")
    for probe in system.probes.unclaimed:
        is_port = space is system.ports
        probe(cpu.index, system.clock.now(), is_port, is_write, address, size, value)
    if system.strict:
        what = f"write of {value:#x}" if is_write else "read"
        raise UnclaimedAccess(
            f"{space.name}: {size}-byte {what} at {address:#x}, where no device is"
        )


# -- the other exits -------------------------------------------------------------------------------


def handle_halt(cpu: CPUState, kvm_run: uapi.KvmRun) -> CpuExec | None:
    """KVM_EXIT_HLT. QEMU: kvm_arch_handle_halt; here, interrupts off means that the run is over."""
    if not kvm_run.if_flag:
        return _end(cpu, ending(Stop.HALTED))
    if cpu.interrupts:
        return None
    cpu.halted = True
    if cpu.system.attended:
        return _end(cpu, ending(Stop.IDLE, "interrupts are on, but there is no irqchip"))
    return CpuExec.HLT


def handle_shutdown(cpu: CPUState, kvm_run: uapi.KvmRun) -> CpuExec | None:
    """KVM_EXIT_SHUTDOWN. QEMU resets the machine; a run ends, since a PC would not say why."""
    return _end(cpu, ending(Stop.TRIPLE_FAULT))


def handle_internal_error(cpu: CPUState, kvm_run: uapi.KvmRun) -> CpuExec | None:
    """KVM_EXIT_INTERNAL_ERROR."""
    error = kvm_run.exit
    assert isinstance(error, uapi.KvmExitInternalError)
    words = SUBERRORS.get(error.suberror, f"suberror {error.suberror}")
    where = f" at RIP {cpu.vcpu.get_regs().rip:#x}" if cpu.vcpu is not None else ""
    code = f": {error.instruction.hex(' ')}" if error.instruction else ""
    return _end(cpu, ending(Stop.INTERNAL_ERROR, words + where + code))


def handle_fail_entry(cpu: CPUState, kvm_run: uapi.KvmRun) -> CpuExec | None:
    """KVM_EXIT_FAIL_ENTRY."""
    code = kvm_run.fail_entry.hardware_entry_failure_reason
    return _end(cpu, ending(Stop.FAIL_ENTRY, f"hardware reason {code:#x}"))


def handle_system_event(cpu: CPUState, kvm_run: uapi.KvmRun) -> CpuExec | None:
    """KVM_EXIT_SYSTEM_EVENT."""
    kind = kvm_run.system_event.type
    if kind == uapi.KVM_SYSTEM_EVENT_RESET:
        return _end(cpu, ending(Stop.RESET))
    if kind == uapi.KVM_SYSTEM_EVENT_SHUTDOWN:
        return _end(cpu, ending(Stop.SHUTDOWN))
    return _end(cpu, ending(Stop.UNKNOWN_EXIT, f"system event {kind}"))


def handle_irq_window_open(cpu: CPUState, kvm_run: uapi.KvmRun) -> CpuExec | None:
    """KVM_EXIT_IRQ_WINDOW_OPEN: kvm_arch_pre_run injects before the next entry."""
    return None


def handle_intr(cpu: CPUState, kvm_run: uapi.KvmRun) -> CpuExec | None:
    """KVM_EXIT_INTR without an errno."""
    return CpuExec.INTERRUPT


def handle_unknown(cpu: CPUState, kvm_run: uapi.KvmRun) -> CpuExec | None:
    """Any exit without a row below."""
    number = kvm_run.exit_reason
    name = uapi.KVM_EXIT_NAMES.get(number, "no KVM exit")
    hardware = kvm_run.hw.hardware_exit_reason
    more = f", hardware reason {hardware:#x}" if number == uapi.KVM_EXIT_UNKNOWN else ""
    return _end(cpu, ending(Stop.UNKNOWN_EXIT, f"{name} ({number}){more}"))


EXIT_HANDLERS: dict[int, Callable[[CPUState, uapi.KvmRun], CpuExec | None]] = {
    uapi.KVM_EXIT_MMIO: handle_mmio,
    uapi.KVM_EXIT_HLT: handle_halt,
    uapi.KVM_EXIT_IRQ_WINDOW_OPEN: handle_irq_window_open,
    uapi.KVM_EXIT_SHUTDOWN: handle_shutdown,
    uapi.KVM_EXIT_FAIL_ENTRY: handle_fail_entry,
    uapi.KVM_EXIT_INTR: handle_intr,
    uapi.KVM_EXIT_INTERNAL_ERROR: handle_internal_error,
    uapi.KVM_EXIT_SYSTEM_EVENT: handle_system_event,
}
"""Every exit but KVM_EXIT_IO, which the loop knows itself. None: go on with KVM_RUN."""


def _end(cpu: CPUState, why: Ending) -> CpuExec:
    system: SystemState = cpu.system
    system.request_stop(why)
    return CpuExec.STOP
