"""Whatever a program calls, in whatever order, it gets an answer or a VmxsimError: real engine."""

from __future__ import annotations

import threading
from collections.abc import Callable
from errno import EINTR

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vmxsim.arch.cpuid import CpuidEntry
from vmxsim.errors import KvmError, VmxsimError
from vmxsim.kvm import uapi
from vmxsim.kvm.api import Kvm, Vcpu, Vm
from vmxsim.kvm.msr import MSR_INDEX_LIST

PAGE = 4096
U64 = st.integers(0, (1 << 64) - 1)
LIKELY = st.sampled_from([0, 2, 0x202, 0x302, 0x1000, 0x8000, 0xFFFF, 0xFFFF_FFF0, 1 << 63])
MSRS = st.sampled_from(MSR_INDEX_LIST) | st.integers(0, 0xFFFF_FFFF)
PROGRAMS = [bytes.fromhex(text) for text in (
    "f4", "0fa2 f4", "e4 60 e6 80 f4", "0f0b", "cc", "cd 80", "0f01c1 f4", "f36c f36e f4",
    "fb f4", "ebfe", "0f30 0f32", "0f22c0 0f20e0", "ea000000f0", "a0 00f0 a2 34f2 f4",
)]  # fmt: skip

ENDS = {"KVM_EXIT_HLT", "KVM_EXIT_SHUTDOWN", "KVM_EXIT_INTERNAL_ERROR", f"errno {EINTR}"}

Call = Callable[[Vm, Vcpu], object]


def regs(vcpu: Vcpu, changes: dict[str, int]) -> None:
    state = vcpu.get_regs()
    for name, value in changes.items():
        setattr(state, name, value)
    vcpu.set_regs(state)


def sregs(vcpu: Vcpu, changes: dict[str, int]) -> None:
    state = vcpu.get_sregs()
    for name, value in changes.items():
        setattr(state, name, value)
    vcpu.set_sregs(state)


def events(vcpu: Vcpu, vector: int, shadow: int) -> None:
    state = vcpu.get_vcpu_events()
    state.exception.injected, state.exception.nr = 1, vector
    state.interrupt.shadow = shadow
    vcpu.set_vcpu_events(state)


def run(vcpu: Vcpu) -> None:
    """KVM_RUN that always ends: a kick comes after two milliseconds."""
    timer = threading.Timer(0.002, vcpu.kick)
    timer.start()
    try:
        vcpu.run()
    finally:
        timer.cancel()


def program(vcpu: Vcpu, ram: bytearray, code: bytes) -> None:
    ram[0x1000 : 0x1000 + len(code)] = code
    state = vcpu.get_sregs()
    state.cs.base = state.cs.selector = 0
    vcpu.set_sregs(state)
    regs(vcpu, {"rip": 0x1000, "rflags": 2, "rsp": 0x8000})
    vcpu.kvm_run.immediate_exit = 0


CALLS = st.one_of(
    st.builds(
        lambda slot, page, pages, flags: lambda vm, vcpu: vm.set_user_memory_region(
            slot, page * PAGE, bytearray(pages * PAGE), flags
        ),
        st.integers(-1, 4), st.integers(-1, 64), st.integers(0, 4), st.integers(0, 3),
    ),
    st.builds(
        lambda irq, level: lambda vm, vcpu: vm.irq_line(irq, level),
        st.integers(-1, 17), st.integers(0, 1),
    ),
    st.builds(lambda vector: lambda vm, vcpu: vcpu.interrupt(vector), st.integers(-1, 256)),
    st.builds(
        lambda changes: lambda vm, vcpu: regs(vcpu, changes),
        st.dictionaries(st.sampled_from(["rax", "rip", "rflags", "rsp", "rcx"]), LIKELY | U64),
    ),
    st.builds(
        lambda changes: lambda vm, vcpu: sregs(vcpu, changes),
        st.fixed_dictionaries(
            {},
            optional={
                "cr0": st.sampled_from([0x11, 0x8000_0011, 0x8001_0033, 0x6000_0010]) | U64,
                "cr3": st.sampled_from([0, 0x2000, 0xF000, 0x10_0000]) | U64,
                "cr4": st.sampled_from([0, 0x10, 0x20, 0x30_0020, 0x1020]) | U64,
                "efer": st.sampled_from([0, 0x500, 0x100, 0xD01]) | U64,
                "cr8": st.integers(0, 16),
            },
        ),
    ),
    st.builds(
        lambda index, value: lambda vm, vcpu: vcpu.set_msrs([(index, value)]),
        MSRS, LIKELY | U64,
    ),
    st.builds(lambda index: lambda vm, vcpu: vcpu.get_msrs([index]), MSRS),
    st.builds(
        lambda leaf, value: lambda vm, vcpu: vcpu.set_cpuid2([CpuidEntry(leaf, 0, 0, value)]),
        st.integers(0, 8), st.integers(0, 0xFFFF_FFFF),
    ),
    st.builds(
        lambda vector, shadow: lambda vm, vcpu: events(vcpu, vector, shadow),
        st.integers(0, 40), st.integers(0, 3),
    ),
    st.builds(lambda state: lambda vm, vcpu: vcpu.set_mp_state(state), st.integers(-1, 5)),
    st.builds(lambda gva: lambda vm, vcpu: vcpu.translate(gva), U64),
    st.sampled_from([
        lambda vm, vcpu: vcpu.get_fpu(),
        lambda vm, vcpu: vcpu.set_fpu(uapi.KvmFpu(fcw=0x37F, mxcsr=0x1F80)),
        lambda vm, vcpu: vcpu.get_xcrs(),
        lambda vm, vcpu: vcpu.get_debugregs(),
        lambda vm, vcpu: vcpu.set_debugregs(uapi.KvmDebugregs(dr7=0x400)),
        lambda vm, vcpu: vm.create_irqchip(),
        lambda vm, vcpu: vm.create_vcpu(0),
        lambda vm, vcpu: vm.create_vcpu(1),
        lambda vm, vcpu: setattr(vcpu.kvm_run, "request_interrupt_window", 1),
        lambda vm, vcpu: setattr(vcpu.kvm_run, "immediate_exit", 1),
        lambda vm, vcpu: run(vcpu),
        lambda vm, vcpu: run(vcpu),
        lambda vm, vcpu: vcpu.kvm_run.exit,
    ]),
)  # fmt: skip


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
@given(st.booleans(), st.lists(st.one_of(CALLS, st.sampled_from(PROGRAMS)), max_size=25))
def test_nothing_but_a_vmxsim_error_comes_out(
    irqchip: bool, calls: list[Call | bytes]
) -> None:
    kvm = Kvm()
    with kvm.create_vm() as vm:
        if irqchip:
            vm.create_irqchip()
        vm.report_dead_halt = True
        ram = bytearray(16 * PAGE)
        vm.set_user_memory_region(0, 0, ram)
        vcpu = vm.create_vcpu(0)
        vcpu.set_cpuid2(kvm.get_supported_cpuid())
        refusals: list[str] = []
        answered = 0
        for call in calls:
            try:
                if isinstance(call, bytes):
                    program(vcpu, ram, call)
                    run(vcpu)
                else:
                    call(vm, vcpu)
            except VmxsimError as error:
                refusals.append(str(error))
            answered += 1
        assert all(refusals)
        assert answered == len(calls)


@pytest.mark.parametrize("code", PROGRAMS, ids=bytes.hex)
def test_every_program_runs_to_an_end_or_a_kick(code: bytes) -> None:
    kvm = Kvm()
    with kvm.create_vm() as vm:
        vm.report_dead_halt = True
        ram = bytearray(16 * PAGE)
        vm.set_user_memory_region(0, 0, ram)
        vcpu = vm.create_vcpu(0)
        vcpu.set_cpuid2(kvm.get_supported_cpuid())
        program(vcpu, ram, code)
        timer = threading.Timer(0.3, vcpu.kick)
        timer.start()
        ended = ""
        for _ in range(40):
            try:
                vcpu.run()
            except KvmError as error:
                ended = f"errno {error.errno}"
                break
            if vcpu.kvm_run.exit_reason not in (uapi.KVM_EXIT_IO, uapi.KVM_EXIT_MMIO):
                ended = uapi.KVM_EXIT_NAMES[vcpu.kvm_run.exit_reason]
                break
        timer.cancel()
        assert ended in ENDS
