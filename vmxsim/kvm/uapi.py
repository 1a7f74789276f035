"""The KVM binary interface, byte for byte: structures, exit codes, ioctl and capability numbers.

Linux: include/uapi/linux/kvm.h and arch/x86/include/uapi/asm/kvm.h, x86 part, as of 6.1. Every
structure is a ctypes one, so the same bytes go to a real /dev/kvm. On top of the bytes stands one
frozen record per exit (`KvmRun.exit`), for code that prefers fields with one meaning each.
"""

from __future__ import annotations

import ctypes
import struct
from ctypes import c_uint8 as u8
from ctypes import c_uint16 as u16
from ctypes import c_uint32 as u32
from ctypes import c_uint64 as u64
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

    from _typeshed import WriteableBuffer

KVM_API_VERSION = 12
PAGE_SIZE = 4096
KVM_PIO_PAGE_OFFSET = 1
KVM_COALESCED_MMIO_PAGE_OFFSET = 2
VCPU_MMAP_SIZE = 3 * PAGE_SIZE

# -- exit codes ------------------------------------------------------------------------------------

KVM_EXIT_UNKNOWN = 0
KVM_EXIT_EXCEPTION = 1
KVM_EXIT_IO = 2
KVM_EXIT_HYPERCALL = 3
KVM_EXIT_DEBUG = 4
KVM_EXIT_HLT = 5
KVM_EXIT_MMIO = 6
KVM_EXIT_IRQ_WINDOW_OPEN = 7
KVM_EXIT_SHUTDOWN = 8
KVM_EXIT_FAIL_ENTRY = 9
KVM_EXIT_INTR = 10
KVM_EXIT_SET_TPR = 11
KVM_EXIT_TPR_ACCESS = 12
KVM_EXIT_S390_SIEIC = 13
KVM_EXIT_S390_RESET = 14
KVM_EXIT_DCR = 15
KVM_EXIT_NMI = 16
KVM_EXIT_INTERNAL_ERROR = 17
KVM_EXIT_OSI = 18
KVM_EXIT_PAPR_HCALL = 19
KVM_EXIT_S390_UCONTROL = 20
KVM_EXIT_WATCHDOG = 21
KVM_EXIT_S390_TSCH = 22
KVM_EXIT_EPR = 23
KVM_EXIT_SYSTEM_EVENT = 24
KVM_EXIT_S390_STSI = 25
KVM_EXIT_IOAPIC_EOI = 26
KVM_EXIT_HYPERV = 27
KVM_EXIT_ARM_NISV = 28
KVM_EXIT_X86_RDMSR = 29
KVM_EXIT_X86_WRMSR = 30
KVM_EXIT_DIRTY_RING_FULL = 31
KVM_EXIT_AP_RESET_HOLD = 32
KVM_EXIT_X86_BUS_LOCK = 33
KVM_EXIT_XEN = 34
KVM_EXIT_RISCV_SBI = 35
KVM_EXIT_RISCV_CSR = 36
KVM_EXIT_NOTIFY = 37

KVM_EXIT_NAMES: dict[int, str] = {
    number: name for name, number in list(globals().items()) if name.startswith("KVM_EXIT_")
}
"""Exit code to name, derived from the constants above."""

KVM_EXIT_IO_IN = 0
KVM_EXIT_IO_OUT = 1

KVM_INTERNAL_ERROR_EMULATION = 1
KVM_INTERNAL_ERROR_SIMUL_EX = 2
KVM_INTERNAL_ERROR_DELIVERY_EV = 3
KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON = 4
KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES = 1 << 0

KVM_SYSTEM_EVENT_SHUTDOWN = 1
KVM_SYSTEM_EVENT_RESET = 2
KVM_SYSTEM_EVENT_CRASH = 3

# -- flags -----------------------------------------------------------------------------------------

KVM_MEM_LOG_DIRTY_PAGES = 1 << 0
KVM_MEM_READONLY = 1 << 1

KVM_MP_STATE_RUNNABLE = 0
KVM_MP_STATE_UNINITIALIZED = 1
KVM_MP_STATE_INIT_RECEIVED = 2
KVM_MP_STATE_HALTED = 3
KVM_MP_STATE_SIPI_RECEIVED = 4

KVM_VCPUEVENT_VALID_NMI_PENDING = 0x01
KVM_VCPUEVENT_VALID_SIPI_VECTOR = 0x02
KVM_VCPUEVENT_VALID_SHADOW = 0x04
KVM_VCPUEVENT_VALID_SMM = 0x08
KVM_VCPUEVENT_VALID_PAYLOAD = 0x10
KVM_VCPUEVENT_VALID_TRIPLE_FAULT = 0x20

KVM_X86_SHADOW_INT_MOV_SS = 0x01
KVM_X86_SHADOW_INT_STI = 0x02

KVM_CPUID_FLAG_SIGNIFCANT_INDEX = 1 << 0
KVM_CPUID_FLAG_STATEFUL_FUNC = 1 << 1
KVM_CPUID_FLAG_STATE_READ_NEXT = 1 << 2

KVM_RUN_X86_SMM = 1 << 0
KVM_RUN_X86_BUS_LOCK = 1 << 1

KVM_X86_QUIRK_OUT_7E_INC_RIP = 1 << 3

# -- capabilities (x86) ----------------------------------------------------------------------------

KVM_CAP_IRQCHIP = 0
KVM_CAP_HLT = 1
KVM_CAP_MMU_SHADOW_CACHE_CONTROL = 2
KVM_CAP_USER_MEMORY = 3
KVM_CAP_SET_TSS_ADDR = 4
KVM_CAP_VAPIC = 6
KVM_CAP_EXT_CPUID = 7
KVM_CAP_CLOCKSOURCE = 8
KVM_CAP_NR_VCPUS = 9
KVM_CAP_NR_MEMSLOTS = 10
KVM_CAP_PIT = 11
KVM_CAP_NOP_IO_DELAY = 12
KVM_CAP_MP_STATE = 14
KVM_CAP_COALESCED_MMIO = 15
KVM_CAP_SYNC_MMU = 16
KVM_CAP_DESTROY_MEMORY_REGION_WORKS = 21
KVM_CAP_USER_NMI = 22
KVM_CAP_SET_GUEST_DEBUG = 23
KVM_CAP_REINJECT_CONTROL = 24
KVM_CAP_IRQ_ROUTING = 25
KVM_CAP_IRQ_INJECT_STATUS = 26
KVM_CAP_JOIN_MEMORY_REGIONS_WORKS = 30
KVM_CAP_MCE = 31
KVM_CAP_IRQFD = 32
KVM_CAP_PIT2 = 33
KVM_CAP_SET_BOOT_CPU_ID = 34
KVM_CAP_PIT_STATE2 = 35
KVM_CAP_IOEVENTFD = 36
KVM_CAP_SET_IDENTITY_MAP_ADDR = 37
KVM_CAP_ADJUST_CLOCK = 39
KVM_CAP_INTERNAL_ERROR_DATA = 40
KVM_CAP_VCPU_EVENTS = 41
KVM_CAP_INTR_SHADOW = 49
KVM_CAP_DEBUGREGS = 50
KVM_CAP_X86_ROBUST_SINGLESTEP = 51
KVM_CAP_ENABLE_CAP = 54
KVM_CAP_XSAVE = 55
KVM_CAP_XCRS = 56
KVM_CAP_ASYNC_PF = 59
KVM_CAP_TSC_CONTROL = 60
KVM_CAP_GET_TSC_KHZ = 61
KVM_CAP_MAX_VCPUS = 66
KVM_CAP_TSC_DEADLINE_TIMER = 72
KVM_CAP_SYNC_REGS = 74
KVM_CAP_SIGNAL_MSI = 77
KVM_CAP_READONLY_MEM = 81
KVM_CAP_CHECK_EXTENSION_VM = 105
KVM_CAP_DISABLE_QUIRKS = 116
KVM_CAP_X86_SMM = 117
KVM_CAP_SPLIT_IRQCHIP = 121
KVM_CAP_MAX_VCPU_ID = 128
KVM_CAP_X2APIC_API = 129
KVM_CAP_IMMEDIATE_EXIT = 136
KVM_CAP_X86_DISABLE_EXITS = 143
KVM_CAP_NESTED_STATE = 157
KVM_CAP_X86_USER_SPACE_MSR = 188
KVM_CAP_X86_MSR_FILTER = 189

# -- structures ------------------------------------------------------------------------------------


def _all(kind: type, names: str) -> list[tuple[str, type]]:
    """Fields of one type, in order."""
    return [(name, kind) for name in names.split()]


class KvmRegs(ctypes.Structure):
    """struct kvm_regs: general registers in the order of the header, not of the encoding."""

    rax: int
    rbx: int
    rcx: int
    rdx: int
    rsi: int
    rdi: int
    rsp: int
    rbp: int
    r8: int
    r9: int
    r10: int
    r11: int
    r12: int
    r13: int
    r14: int
    r15: int
    rip: int
    rflags: int
    _fields_ = _all(u64, "rax rbx rcx rdx rsi rdi rsp rbp r8 r9 r10 r11 r12 r13 r14 r15 rip rflags")


class KvmSegment(ctypes.Structure):
    """struct kvm_segment: limit in bytes (already scaled), access rights as single bytes."""

    base: int
    limit: int
    selector: int
    type: int
    present: int
    dpl: int
    db: int
    s: int
    l: int  # noqa: E741  # the header's name
    g: int
    avl: int
    unusable: int
    _fields_ = [
        ("base", u64),
        ("limit", u32),
        ("selector", u16),
        *_all(u8, "type present dpl db s l g avl unusable padding"),
    ]


class KvmDtable(ctypes.Structure):
    """struct kvm_dtable: GDTR or IDTR."""

    base: int
    limit: int
    _fields_ = [("base", u64), ("limit", u16), ("padding", u16 * 3)]


class KvmSregs(ctypes.Structure):
    """struct kvm_sregs: segments, tables, control registers; `interrupt_bitmap` one pending irq."""

    cs: KvmSegment
    ds: KvmSegment
    es: KvmSegment
    fs: KvmSegment
    gs: KvmSegment
    ss: KvmSegment
    tr: KvmSegment
    ldt: KvmSegment
    gdt: KvmDtable
    idt: KvmDtable
    cr0: int
    cr2: int
    cr3: int
    cr4: int
    cr8: int
    efer: int
    apic_base: int
    interrupt_bitmap: ctypes.Array[ctypes.c_uint64]
    _fields_ = [
        *_all(KvmSegment, "cs ds es fs gs ss tr ldt"),
        ("gdt", KvmDtable),
        ("idt", KvmDtable),
        *_all(u64, "cr0 cr2 cr3 cr4 cr8 efer apic_base"),
        ("interrupt_bitmap", u64 * 4),
    ]


class KvmFpu(ctypes.Structure):
    """struct kvm_fpu: x87 and SSE state; `ftwx` is the abridged tag word of FXSAVE."""

    fpr: ctypes.Array[ctypes.Array[ctypes.c_uint8]]
    fcw: int
    fsw: int
    ftwx: int
    last_opcode: int
    last_ip: int
    last_dp: int
    xmm: ctypes.Array[ctypes.Array[ctypes.c_uint8]]
    mxcsr: int
    _fields_ = [
        ("fpr", (u8 * 16) * 8),
        ("fcw", u16),
        ("fsw", u16),
        ("ftwx", u8),
        ("pad1", u8),
        ("last_opcode", u16),
        ("last_ip", u64),
        ("last_dp", u64),
        ("xmm", (u8 * 16) * 16),
        ("mxcsr", u32),
        ("pad2", u32),
    ]


class KvmMsrEntry(ctypes.Structure):
    """struct kvm_msr_entry."""

    index: int
    data: int
    _fields_ = [("index", u32), ("reserved", u32), ("data", u64)]


class KvmMsrs(ctypes.Structure):
    """struct kvm_msrs: the head; `nmsrs` KvmMsrEntry follow it in memory."""

    nmsrs: int
    _fields_ = [("nmsrs", u32), ("pad", u32)]


class KvmCpuidEntry2(ctypes.Structure):
    """struct kvm_cpuid_entry2."""

    function: int
    index: int
    flags: int
    eax: int
    ebx: int
    ecx: int
    edx: int
    _fields_ = [
        *_all(u32, "function index flags eax ebx ecx edx"),
        ("padding", u32 * 3),
    ]


class KvmCpuid2(ctypes.Structure):
    """struct kvm_cpuid2: the head; `nent` KvmCpuidEntry2 follow it in memory."""

    nent: int
    _fields_ = [("nent", u32), ("padding", u32)]


class KvmUserspaceMemoryRegion(ctypes.Structure):
    """struct kvm_userspace_memory_region."""

    slot: int
    flags: int
    guest_phys_addr: int
    memory_size: int
    userspace_addr: int
    _fields_ = [
        ("slot", u32),
        ("flags", u32),
        ("guest_phys_addr", u64),
        ("memory_size", u64),
        ("userspace_addr", u64),
    ]


class KvmIrqLevel(ctypes.Structure):
    """struct kvm_irq_level."""

    irq: int
    level: int
    _fields_ = [("irq", u32), ("level", u32)]


class KvmInterrupt(ctypes.Structure):
    """struct kvm_interrupt: `irq` is a vector, not a line."""

    irq: int
    _fields_ = [("irq", u32)]


class KvmMpState(ctypes.Structure):
    """struct kvm_mp_state."""

    mp_state: int
    _fields_ = [("mp_state", u32)]


class KvmPitConfig(ctypes.Structure):
    """struct kvm_pit_config."""

    flags: int
    _fields_ = [("flags", u32), ("pad", u32 * 15)]


class KvmTranslation(ctypes.Structure):
    """struct kvm_translation: `physical_address` means something only when `valid`."""

    linear_address: int
    physical_address: int
    valid: int
    writeable: int
    usermode: int
    _fields_ = [
        ("linear_address", u64),
        ("physical_address", u64),
        ("valid", u8),
        ("writeable", u8),
        ("usermode", u8),
        ("pad", u8 * 5),
    ]


class KvmEventsException(ctypes.Structure):
    """kvm_vcpu_events.exception."""

    injected: int
    nr: int
    has_error_code: int
    pending: int
    error_code: int
    _fields_ = [
        ("injected", u8),
        ("nr", u8),
        ("has_error_code", u8),
        ("pending", u8),
        ("error_code", u32),
    ]


class KvmEventsInterrupt(ctypes.Structure):
    """kvm_vcpu_events.interrupt."""

    injected: int
    nr: int
    soft: int
    shadow: int
    _fields_ = [("injected", u8), ("nr", u8), ("soft", u8), ("shadow", u8)]


class KvmEventsNmi(ctypes.Structure):
    """kvm_vcpu_events.nmi."""

    injected: int
    pending: int
    masked: int
    _fields_ = [("injected", u8), ("pending", u8), ("masked", u8), ("pad", u8)]


class KvmEventsSmi(ctypes.Structure):
    """kvm_vcpu_events.smi."""

    smm: int
    pending: int
    smm_inside_nmi: int
    latched_init: int
    _fields_ = [("smm", u8), ("pending", u8), ("smm_inside_nmi", u8), ("latched_init", u8)]


class KvmEventsTripleFault(ctypes.Structure):
    """kvm_vcpu_events.triple_fault."""

    pending: int
    _fields_ = [("pending", u8)]


class KvmVcpuEvents(ctypes.Structure):
    """struct kvm_vcpu_events: what is pending or being delivered; `flags` says what SET obeys."""

    exception: KvmEventsException
    interrupt: KvmEventsInterrupt
    nmi: KvmEventsNmi
    sipi_vector: int
    flags: int
    smi: KvmEventsSmi
    triple_fault: KvmEventsTripleFault
    exception_has_payload: int
    exception_payload: int
    _fields_ = [
        ("exception", KvmEventsException),
        ("interrupt", KvmEventsInterrupt),
        ("nmi", KvmEventsNmi),
        ("sipi_vector", u32),
        ("flags", u32),
        ("smi", KvmEventsSmi),
        ("triple_fault", KvmEventsTripleFault),
        ("reserved", u8 * 26),
        ("exception_has_payload", u8),
        ("exception_payload", u64),
    ]


class KvmDebugregs(ctypes.Structure):
    """struct kvm_debugregs."""

    db: ctypes.Array[ctypes.c_uint64]
    dr6: int
    dr7: int
    flags: int
    _fields_ = [
        ("db", u64 * 4),
        ("dr6", u64),
        ("dr7", u64),
        ("flags", u64),
        ("reserved", u64 * 9),
    ]


class KvmXcr(ctypes.Structure):
    """struct kvm_xcr."""

    xcr: int
    value: int
    _fields_ = [("xcr", u32), ("reserved", u32), ("value", u64)]


class KvmXcrs(ctypes.Structure):
    """struct kvm_xcrs."""

    nr_xcrs: int
    flags: int
    xcrs: ctypes.Array[KvmXcr]
    _fields_ = [("nr_xcrs", u32), ("flags", u32), ("xcrs", KvmXcr * 16), ("padding", u64 * 16)]


# -- ioctl numbers ---------------------------------------------------------------------------------

KVMIO = 0xAE
_WRITE, _READ = 1 << 30, 2 << 30


def _ioc(direction: int, number: int, argument: type | None = None) -> int:
    """Compute an ioctl number as the kernel's _IO, _IOR, _IOW and _IOWR macros do."""
    return direction | (ctypes.sizeof(argument) if argument else 0) << 16 | KVMIO << 8 | number


KVM_GET_API_VERSION = _ioc(0, 0x00)
KVM_CREATE_VM = _ioc(0, 0x01)
KVM_GET_MSR_INDEX_LIST = _ioc(_READ | _WRITE, 0x02, u32)
KVM_CHECK_EXTENSION = _ioc(0, 0x03)
KVM_GET_VCPU_MMAP_SIZE = _ioc(0, 0x04)
KVM_GET_SUPPORTED_CPUID = _ioc(_READ | _WRITE, 0x05, KvmCpuid2)
KVM_CREATE_VCPU = _ioc(0, 0x41)
KVM_SET_USER_MEMORY_REGION = _ioc(_WRITE, 0x46, KvmUserspaceMemoryRegion)
KVM_SET_TSS_ADDR = _ioc(0, 0x47)
KVM_SET_IDENTITY_MAP_ADDR = _ioc(_WRITE, 0x48, u64)
KVM_CREATE_IRQCHIP = _ioc(0, 0x60)
KVM_IRQ_LINE = _ioc(_WRITE, 0x61, KvmIrqLevel)
KVM_CREATE_PIT = _ioc(0, 0x64)
KVM_CREATE_PIT2 = _ioc(_WRITE, 0x77, KvmPitConfig)
KVM_RUN = _ioc(0, 0x80)
KVM_GET_REGS = _ioc(_READ, 0x81, KvmRegs)
KVM_SET_REGS = _ioc(_WRITE, 0x82, KvmRegs)
KVM_GET_SREGS = _ioc(_READ, 0x83, KvmSregs)
KVM_SET_SREGS = _ioc(_WRITE, 0x84, KvmSregs)
KVM_TRANSLATE = _ioc(_READ | _WRITE, 0x85, KvmTranslation)
KVM_INTERRUPT = _ioc(_WRITE, 0x86, KvmInterrupt)
KVM_GET_MSRS = _ioc(_READ | _WRITE, 0x88, KvmMsrs)
KVM_SET_MSRS = _ioc(_WRITE, 0x89, KvmMsrs)
KVM_GET_FPU = _ioc(_READ, 0x8C, KvmFpu)
KVM_SET_FPU = _ioc(_WRITE, 0x8D, KvmFpu)
KVM_SET_CPUID2 = _ioc(_WRITE, 0x90, KvmCpuid2)
KVM_GET_CPUID2 = _ioc(_READ | _WRITE, 0x91, KvmCpuid2)
KVM_GET_MP_STATE = _ioc(_READ, 0x98, KvmMpState)
KVM_SET_MP_STATE = _ioc(_WRITE, 0x99, KvmMpState)
KVM_NMI = _ioc(0, 0x9A)
KVM_GET_VCPU_EVENTS = _ioc(_READ, 0x9F, KvmVcpuEvents)
KVM_SET_VCPU_EVENTS = _ioc(_WRITE, 0xA0, KvmVcpuEvents)
KVM_GET_DEBUGREGS = _ioc(_READ, 0xA1, KvmDebugregs)
KVM_SET_DEBUGREGS = _ioc(_WRITE, 0xA2, KvmDebugregs)
KVM_GET_TSC_KHZ = _ioc(0, 0xA3)
KVM_GET_XCRS = _ioc(_READ, 0xA6, KvmXcrs)
KVM_SET_XCRS = _ioc(_WRITE, 0xA7, KvmXcrs)

# -- exits as values -------------------------------------------------------------------------------


class Direction(Enum):
    """Which way a port access goes, seen from the guest."""

    IN = KVM_EXIT_IO_IN
    OUT = KVM_EXIT_IO_OUT


class KvmExitIo(NamedTuple):
    """The guest accesses a port: `count` items of `size` bytes; `data` is empty for IN.

    Answer an IN with `KvmRun.answer(size * count bytes)` before the next KVM_RUN.
    """

    direction: Direction
    port: int
    size: int
    count: int  # type: ignore[assignment]  # shadows tuple.count, which nobody needs
    data: bytes


class KvmExitMmio(NamedTuple):
    """The guest accesses memory nobody backs: `data` is None for a read of `size` bytes.

    Answer a read with `KvmRun.answer(size bytes)` before the next KVM_RUN.
    """

    gpa: int
    size: int
    data: bytes | None


class KvmExitHlt(NamedTuple):
    """HLT without an in-kernel irqchip; RIP is behind it."""


class KvmExitIrqWindowOpen(NamedTuple):
    """The interrupt window that userspace asked for is open: KVM_INTERRUPT will be taken."""


class KvmExitShutdown(NamedTuple):
    """A triple fault."""


class KvmExitIntr(NamedTuple):
    """KVM_RUN was interrupted (EINTR): by a kick, a signal or `immediate_exit`."""


class KvmExitDebug(NamedTuple):
    """A debug event for userspace."""

    exception: int
    pc: int
    dr6: int
    dr7: int


class KvmExitFailEntry(NamedTuple):
    """VM entry failed: the hardware's reason, with bit 31 set for bad guest state."""

    hardware_entry_failure_reason: int
    cpu: int


class KvmExitException(NamedTuple):
    """An exception nobody could handle. KVM has not returned this for years."""

    exception: int
    error_code: int


class KvmExitInternalError(NamedTuple):
    """KVM gave up; for `suberror` EMULATION, `instruction` holds the bytes it could not emulate."""

    suberror: int
    data: tuple[int, ...]
    instruction: bytes = b""


class KvmExitSystemEvent(NamedTuple):
    """Shutdown, reset or crash reported through a paravirtual channel."""

    type: int


class KvmExitUnknown(NamedTuple):
    """KVM_EXIT_UNKNOWN: an exit KVM does not know, by hardware reason."""

    hardware_exit_reason: int


class KvmExitOther(NamedTuple):
    """Any code without a record of its own here: look at the structure's fields."""

    exit_reason: int


KvmExit: TypeAlias = (
    KvmExitIo
    | KvmExitMmio
    | KvmExitHlt
    | KvmExitIrqWindowOpen
    | KvmExitShutdown
    | KvmExitIntr
    | KvmExitDebug
    | KvmExitFailEntry
    | KvmExitException
    | KvmExitInternalError
    | KvmExitSystemEvent
    | KvmExitUnknown
    | KvmExitOther
)

# -- struct kvm_run --------------------------------------------------------------------------------


class _Hw(ctypes.Structure):
    hardware_exit_reason: int
    _fields_ = [("hardware_exit_reason", u64)]


class _FailEntry(ctypes.Structure):
    hardware_entry_failure_reason: int
    cpu: int
    _fields_ = [("hardware_entry_failure_reason", u64), ("cpu", u32)]


class _Ex(ctypes.Structure):
    exception: int
    error_code: int
    _fields_ = [("exception", u32), ("error_code", u32)]


class _Io(ctypes.Structure):
    direction: int
    size: int
    port: int
    count: int
    data_offset: int
    _fields_ = [
        ("direction", u8),
        ("size", u8),
        ("port", u16),
        ("count", u32),
        ("data_offset", u64),
    ]


class _Debug(ctypes.Structure):
    exception: int
    pc: int
    dr6: int
    dr7: int
    _fields_ = [("exception", u32), ("pad", u32), ("pc", u64), ("dr6", u64), ("dr7", u64)]


class _Mmio(ctypes.Structure):
    phys_addr: int
    data: ctypes.Array[ctypes.c_uint8]
    len: int
    is_write: int
    _fields_ = [("phys_addr", u64), ("data", u8 * 8), ("len", u32), ("is_write", u8)]


class _Hypercall(ctypes.Structure):
    nr: int
    args: ctypes.Array[ctypes.c_uint64]
    ret: int
    longmode: int
    _fields_ = [("nr", u64), ("args", u64 * 6), ("ret", u64), ("longmode", u32), ("pad", u32)]


class _TprAccess(ctypes.Structure):
    rip: int
    is_write: int
    _fields_ = [("rip", u64), ("is_write", u32), ("pad", u32)]


class _Internal(ctypes.Structure):
    suberror: int
    ndata: int
    data: ctypes.Array[ctypes.c_uint64]
    _fields_ = [("suberror", u32), ("ndata", u32), ("data", u64 * 16)]


class _EmulationFailure(ctypes.Structure):
    suberror: int
    ndata: int
    flags: int
    insn_size: int
    insn_bytes: ctypes.Array[ctypes.c_uint8]
    _fields_ = [
        ("suberror", u32),
        ("ndata", u32),
        ("flags", u64),
        ("insn_size", u8),
        ("insn_bytes", u8 * 15),
    ]


class _SystemEvent(ctypes.Structure):
    type: int
    ndata: int
    data: ctypes.Array[ctypes.c_uint64]
    _fields_ = [("type", u32), ("ndata", u32), ("data", u64 * 16)]


class _Eoi(ctypes.Structure):
    vector: int
    _fields_ = [("vector", u8)]


class _Msr(ctypes.Structure):
    error: int
    reason: int
    index: int
    data: int
    _fields_ = [("error", u8), ("pad", u8 * 7), ("reason", u32), ("index", u32), ("data", u64)]


class _ExitUnion(ctypes.Union):
    _fields_ = [
        ("hw", _Hw),
        ("fail_entry", _FailEntry),
        ("ex", _Ex),
        ("io", _Io),
        ("debug", _Debug),
        ("mmio", _Mmio),
        ("hypercall", _Hypercall),
        ("tpr_access", _TprAccess),
        ("internal", _Internal),
        ("emulation_failure", _EmulationFailure),
        ("system_event", _SystemEvent),
        ("eoi", _Eoi),
        ("msr", _Msr),
        ("padding", u8 * 256),
    ]


class KvmRun(ctypes.Structure):
    """struct kvm_run, at the start of a vCPU's shared buffer: `KvmRun.over(vcpu.shared)`.

    The fields are live memory. A nested field (``kvm_run.io``) costs ctypes a new object at each
    look; a loop that handles many exits reads them with `IO_EXIT.unpack_from(shared, EXIT_OFFSET)`.
    """

    request_interrupt_window: int
    immediate_exit: int
    exit_reason: int
    ready_for_interrupt_injection: int
    if_flag: int
    flags: int
    cr8: int
    apic_base: int
    hw: _Hw
    fail_entry: _FailEntry
    ex: _Ex
    io: _Io
    debug: _Debug
    mmio: _Mmio
    hypercall: _Hypercall
    tpr_access: _TprAccess
    internal: _Internal
    emulation_failure: _EmulationFailure
    system_event: _SystemEvent
    eoi: _Eoi
    msr: _Msr
    kvm_valid_regs: int
    kvm_dirty_regs: int
    shared: memoryview
    _anonymous_ = ["u"]
    _fields_ = [
        ("request_interrupt_window", u8),
        ("immediate_exit", u8),
        ("padding1", u8 * 6),
        ("exit_reason", u32),
        ("ready_for_interrupt_injection", u8),
        ("if_flag", u8),
        ("flags", u16),
        ("cr8", u64),
        ("apic_base", u64),
        ("u", _ExitUnion),
        ("kvm_valid_regs", u64),
        ("kvm_dirty_regs", u64),
        ("s", u8 * 2048),
    ]

    @classmethod
    def over(cls, shared: WriteableBuffer) -> KvmRun:
        """Lay the structure over a vCPU's shared buffer, whose PIO page `exit` and `answer` use."""
        run = cls.from_buffer(shared)
        run.shared = memoryview(shared).cast("B")
        return run

    @property
    def exit(self) -> KvmExit:
        """The last exit as a frozen record with its own fields."""
        build = _RECORDS.get(self.exit_reason)
        return build(self) if build else KvmExitOther(self.exit_reason)

    def answer(self, data: bytes) -> None:
        """Hand the guest what its IN or MMIO read asked for; the next KVM_RUN completes it."""
        if self.exit_reason == KVM_EXIT_IO:
            start, room = self.io.data_offset, self.io.size * self.io.count
        elif self.exit_reason == KVM_EXIT_MMIO:
            start, room = MMIO_DATA_OFFSET, self.mmio.len
        else:
            raise ValueError(f"{KVM_EXIT_NAMES.get(self.exit_reason)} takes no answer")
        if len(data) != room:
            raise ValueError(f"the guest asked for {room} bytes, the answer has {len(data)}")
        self.shared[start : start + room] = data


EXIT_OFFSET = 32
"""Where the exit's own fields begin in kvm_run."""
PIO_DATA_OFFSET = KVM_PIO_PAGE_OFFSET * PAGE_SIZE
MMIO_DATA_OFFSET = EXIT_OFFSET + _Mmio.data.offset  # type: ignore[attr-defined]
IO_EXIT = struct.Struct("<BBHIQ")
"""kvm_run.io in one unpack: direction, size, port, count, data_offset."""
MMIO_EXIT = struct.Struct("<Q8sIB")
"""kvm_run.mmio in one unpack: phys_addr, data, len, is_write."""


def _io(run: KvmRun) -> KvmExitIo:
    direction, size, port, count, start = IO_EXIT.unpack_from(run.shared, EXIT_OFFSET)
    data = bytes(run.shared[start : start + size * count]) if direction == KVM_EXIT_IO_OUT else b""
    return KvmExitIo(Direction(direction), port, size, count, data)


def _mmio(run: KvmRun) -> KvmExitMmio:
    mmio = run.mmio
    return KvmExitMmio(
        mmio.phys_addr, mmio.len, bytes(mmio.data[: mmio.len]) if mmio.is_write else None
    )


def _internal(run: KvmRun) -> KvmExitInternalError:
    failure = run.emulation_failure
    data = tuple(run.internal.data[: run.internal.ndata])
    instruction = b""
    if (
        failure.suberror == KVM_INTERNAL_ERROR_EMULATION
        and failure.ndata
        and failure.flags & KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES
    ):
        instruction = bytes(failure.insn_bytes[: failure.insn_size])
    return KvmExitInternalError(failure.suberror, data, instruction)


def _debug(run: KvmRun) -> KvmExitDebug:
    debug = run.debug
    return KvmExitDebug(debug.exception, debug.pc, debug.dr6, debug.dr7)


def _fail_entry(run: KvmRun) -> KvmExitFailEntry:
    return KvmExitFailEntry(run.fail_entry.hardware_entry_failure_reason, run.fail_entry.cpu)


_RECORDS: dict[int, Callable[[KvmRun], KvmExit]] = {
    KVM_EXIT_UNKNOWN: lambda run: KvmExitUnknown(run.hw.hardware_exit_reason),
    KVM_EXIT_EXCEPTION: lambda run: KvmExitException(run.ex.exception, run.ex.error_code),
    KVM_EXIT_IO: _io,
    KVM_EXIT_DEBUG: _debug,
    KVM_EXIT_HLT: lambda run: KvmExitHlt(),
    KVM_EXIT_MMIO: _mmio,
    KVM_EXIT_IRQ_WINDOW_OPEN: lambda run: KvmExitIrqWindowOpen(),
    KVM_EXIT_SHUTDOWN: lambda run: KvmExitShutdown(),
    KVM_EXIT_FAIL_ENTRY: _fail_entry,
    KVM_EXIT_INTR: lambda run: KvmExitIntr(),
    KVM_EXIT_INTERNAL_ERROR: _internal,
    KVM_EXIT_SYSTEM_EVENT: lambda run: KvmExitSystemEvent(run.system_event.type),
}
