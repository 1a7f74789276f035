"""Ports without the long way up: what the engine's callbacks are given while nobody watches exits.

No Linux relative. An in-kernel chip answers inside the callback. An access that userspace has to
deal with is written into kvm_run there, and then leaves the guest as any exit does. Each counts as
the exit it is; while a probe watches exits or ports, every access takes the whole path through
kernel_pio, with the same outcome.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from time import perf_counter_ns
from typing import TypeAlias

from vmxsim.arch.exit_reasons import ExitReason
from vmxsim.kvm.kvm_host import IoRange, KvmVcpu
from vmxsim.kvm.run import Run
from vmxsim.kvm.stat import PortStat
from vmxsim.kvm.uapi import (
    EXIT_OFFSET,
    IO_EXIT,
    KVM_EXIT_IO,
    KVM_EXIT_IO_IN,
    KVM_EXIT_IO_OUT,
    PIO_DATA_OFFSET,
)

FastOut: TypeAlias = Callable[[int, int, int], bool]
FastIn: TypeAlias = Callable[[int, int], int]
Complete: TypeAlias = Callable[[KvmVcpu], Run]

_IO = int(ExitReason.IO_INSTRUCTION)
_UNKNOWN = None, b""
_REASON_IO = KVM_EXIT_IO.to_bytes(4, "little")
REASON_OFFSET, REASON_END = 8, 12
_ITEM = {1: Struct("<B"), 2: Struct("<H"), 4: Struct("<I")}


def use_fast_ports(vcpu: KvmVcpu) -> None:
    """Let the engine's callbacks deal with ports, unless a probe wants to see the exits."""
    probes = vcpu.probes
    vcpu.probes_seen = probes.generation
    watched = bool(probes.fast_pio)
    if watched is not vcpu.fast_ports_watched:
        vcpu.fast_ports_watched = watched
        install_fast_ports(vcpu)
    vcpu.processor.ports.enabled = not (
        probes.vm_exit
        or probes.vm_entry
        or probes.pio
        or len(probes.handled) > len(probes.fast_pio)
    )


def install_fast_ports(vcpu: KvmVcpu) -> None:
    """Hand the in-kernel ports to the engine. Again when a watcher of fast_pio comes or goes."""
    ports, watched = vcpu.processor.ports, bool(vcpu.probes.fast_pio)
    for port, found in vcpu.vm.pio_bus.items():
        fast_out, fast_in = _fast_out(vcpu, port, found), _fast_in(vcpu, port, found)
        ports.fast_out[port] = _timed_out(vcpu, fast_out) if watched else fast_out
        ports.fast_in[port] = _timed_in(vcpu, fast_in) if watched else fast_in


def install_bounces(vcpu: KvmVcpu, complete_out: Complete, complete_in: Complete) -> None:
    """Hand the engine what prepares KVM_EXIT_IO for ports that no chip in the kernel has."""
    ports = vcpu.processor.ports
    ports.bounce_out = _bounce_out(vcpu, complete_out)
    ports.bounce_in = _bounce_in(vcpu, complete_in)


def _bounce_out(vcpu: KvmVcpu, complete: Complete) -> Callable[[int, int, int], None]:
    shared, arch, stat = vcpu.shared, vcpu.arch, vcpu.stat
    reason = shared[REASON_OFFSET:REASON_END]
    exit = shared[EXIT_OFFSET : EXIT_OFFSET + IO_EXIT.size]
    known: dict[int, tuple[PortStat, bytes]] = {}

    def bounce_out(port: int, size: int, value: int) -> None:
        row, filled = known.get(port << 4 | size, _UNKNOWN)
        if row is None:
            filled = IO_EXIT.pack(KVM_EXIT_IO_OUT, size, port, 1, PIO_DATA_OFFSET)
            row = stat.port(port)
            known[port << 4 | size] = row, filled
        if size == 1:
            shared[PIO_DATA_OFFSET] = value
        else:
            _ITEM[size].pack_into(shared, PIO_DATA_OFFSET, value)
        exit[:] = filled
        reason[:] = _REASON_IO
        arch.rip_moved = False
        arch.complete_userspace_io = complete
        row.userspace_out += 1

    return bounce_out


def _bounce_in(vcpu: KvmVcpu, complete: Complete) -> Callable[[int, int], None]:
    shared, kvm_run, arch = vcpu.shared, vcpu.kvm_run, vcpu.arch
    rows, pack_exit, pio = vcpu.stat.ports, IO_EXIT.pack_into, vcpu.arch.pio

    def bounce_in(port: int, size: int) -> None:
        _ITEM[size].pack_into(shared, PIO_DATA_OFFSET, 0)
        pack_exit(shared, EXIT_OFFSET, KVM_EXIT_IO_IN, size, port, 1, PIO_DATA_OFFSET)
        kvm_run.exit_reason = KVM_EXIT_IO
        pio.port, pio.size, pio.count, pio.is_in = port, size, 1, True
        arch.rip_moved = False
        arch.complete_userspace_io = complete
        row = rows.get(port) or vcpu.stat.port(port)
        row.userspace_in += 1

    return bounce_in


def _timed_out(vcpu: KvmVcpu, fast_out: FastOut) -> FastOut:
    probes, vcpu_id = vcpu.probes, vcpu.id

    def timed_out(port: int, size: int, value: int) -> bool:
        start = perf_counter_ns()
        if fast_out(port, size, value):
            return True  # it leaves the guest as an exit, and is told of as one
        elapsed = perf_counter_ns() - start
        for seen in probes.fast_pio:
            seen(vcpu_id, True, port, elapsed)
        return False

    return timed_out


def _timed_in(vcpu: KvmVcpu, fast_in: FastIn) -> FastIn:
    probes, vcpu_id = vcpu.probes, vcpu.id

    def timed_in(port: int, size: int) -> int:
        start = perf_counter_ns()
        value = fast_in(port, size)
        elapsed = perf_counter_ns() - start
        for seen in probes.fast_pio:
            seen(vcpu_id, False, port, elapsed)
        return value

    return timed_in


def _fast_out(vcpu: KvmVcpu, port: int, found: IoRange) -> FastOut:
    write, offset, row = found.device.write, port - found.base, vcpu.stat.port(port)
    exits, counter, arch = vcpu.exits, vcpu.exit_counter, vcpu.arch

    def fast_out(port: int, size: int, value: int) -> bool:
        counter.exits += 1
        row.kernel_out += 1
        write(offset, size, value)
        if vcpu.requests:
            # It leaves the guest after all, as the exit that it is, and is counted there.
            counter.exits -= 1
            arch.pio_done = True
            return True
        exits[_IO] += 1
        return False

    return fast_out


def _fast_in(vcpu: KvmVcpu, port: int, found: IoRange) -> FastIn:
    read, offset, row = found.device.read, port - found.base, vcpu.stat.port(port)
    exits, counter = vcpu.exits, vcpu.exit_counter

    def fast_in(port: int, size: int) -> int:
        counter.exits += 1
        exits[_IO] += 1
        row.kernel_in += 1
        return read(offset, size)

    return fast_in
