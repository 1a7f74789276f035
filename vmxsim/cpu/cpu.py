"""The engine: Unicorn, run through TCG's own intercept machinery, one Trap at a time.

No hook sits on instructions. The guest runs with TCG's AMD-V guest bit set, so that what VMX might
exit on aborts before it has any effect; run() finds out which instruction it was and returns a
frozen record, with every register exactly at the instruction.
"""

from __future__ import annotations

import ctypes
import mmap
from typing import NamedTuple

from unicorn import (
    UC_ARCH_X86,
    UC_CTL_TLB_TYPE,
    UC_CTL_UC_USE_EXITS,
    UC_MODE_64,
    UC_PROT_ALL,
    UC_TLB_CPU,
)
from unicorn.unicorn_py3.unicorn import uclib

from vmxsim.arch.paging import PageFault
from vmxsim.arch.registers import Dr6
from vmxsim.arch.segments import AccessRights, SegmentRegister, TableRegister, real_mode_segment
from vmxsim.cpu import fpu, image, intercepts
from vmxsim.cpu.blocks import BlockCounter
from vmxsim.cpu.code import TranslatedCode
from vmxsim.cpu.decode import UNDEFINED_TO_THE_ENGINE, Decoder
from vmxsim.cpu.linear import LinearMemory
from vmxsim.cpu.memory import GPA_LIMIT, PAGE, GuestMemory
from vmxsim.cpu.nested import LARGE, NestedPages
from vmxsim.cpu.ports import AFTER, ERROR, IN, SYSCALL, Noted, Ports
from vmxsim.cpu.state import CpuState, flush_code
from vmxsim.cpu.traps import (
    EventTrap,
    ExceptionTrap,
    InsnTrap,
    Instruction,
    IoTrap,
    MemoryTrap,
    Operand,
    Trap,
    TrapKind,
)
from vmxsim.errors import EngineError

HOST_PAGES = GPA_LIMIT
"""The engine's own pages (VMCB, MSR bitmap) lie above every guest-physical address."""

_MSR_BITMAP = 0x1000
_EXIT_INFO_2 = 0x80
_TEST_CODE = 0x800
_MODE = image.HF_CS64 | image.HF_CS32
_SIGNED = 1 << 63
_GP = intercepts.EXCEPTION_BASE + 13
_UD = intercepts.EXCEPTION_BASE + 6
_PF = intercepts.EXCEPTION_BASE + 14
_DB = intercepts.EXCEPTION_BASE + 1
_UC_CTL_WRITE = 1 << 30
_ONE_ARGUMENT = 1 << 26
KICK_BIT = 2
WINDOW_BIT = 1


class _Site(NamedTuple):
    """A decoded instruction where it stands: valid while its bytes and the mode are the same."""

    trap: InsnTrap | None
    insn: Instruction
    kind: TrapKind | None
    mode: int
    cs_base: int
    word: ctypes.c_uint64
    mask: int
    bytes: int


def _control(handle: int, kind: int, value: int) -> None:
    """Call uc_ctl with one argument."""
    uclib.uc_ctl(handle, kind | _ONE_ARGUMENT | _UC_CTL_WRITE, ctypes.c_int(value))


def _open_engine() -> int:
    """Open a 64-bit x86 engine with the guest's own page tables; return its handle."""
    image.check_version()
    handle = ctypes.c_void_p()
    error = uclib.uc_open(UC_ARCH_X86, UC_MODE_64, ctypes.byref(handle))
    if error or not handle.value:
        raise EngineError(f"Unicorn could not start (error {error})")
    _control(handle.value, UC_CTL_TLB_TYPE, UC_TLB_CPU)
    _control(handle.value, UC_CTL_UC_USE_EXITS, 1)
    return handle.value


class UnicornCpu(CpuState):
    """One guest CPU. Not for two threads at once, except for kick()."""

    def __init__(self) -> None:
        handle = _open_engine()
        self._handle: int | None = handle
        live = image.find(handle)
        self._sites: dict[int, _Site] = {}
        self._code_pages: dict[int, int] = {}
        super().__init__(live)
        self._nested = NestedPages(handle, HOST_PAGES + LARGE)
        self.memory = GuestMemory(handle, self._nested, self._memory_changed)
        self.linear = LinearMemory(self, self.memory)
        self._decoded: dict[tuple[bytes, int], tuple[TrapKind | None, Instruction] | None] = {}
        self._decoder = Decoder()
        self._kicked = False
        self._exception = ctypes.c_int32.from_address(live.exception_index)
        self._request = ctypes.c_uint8.from_address(live.interrupt_request)
        self._window = ctypes.c_uint8.from_address(live.interrupt_request + 1)
        self._stop = ctypes.c_uint16.from_address(live.icount_high)
        self._error_code = ctypes.c_uint32.from_address(live.env + image.ERROR_CODE)
        self._set_up_engine(live)
        self.ports = Ports(live)
        self.code = TranslatedCode(live, self.memory, self._locate, self._flush_code)
        self._counter = BlockCounter(live, self._flush_code)
        self._start = uclib["uc_emu_start"]
        self._arguments = (
            ctypes.c_void_p(handle),
            self._rip,
            ctypes.c_uint64(0),
            ctypes.c_uint64(0),
        )
        self._count = ctypes.c_size_t(0)
        self._self_test()
        self.reset()

    # ---- start-up

    def _set_up_engine(self, live: image.Live) -> None:
        """Switch on the intercept machinery, the memory callbacks and the safe way to stop."""
        env = live.env
        ctypes.c_uint8.from_address(live.no_exit_request).value = 1
        self._host = mmap.mmap(-1, 0x5000)
        self._host_view = (ctypes.c_char * 0x5000).from_buffer(self._host)
        base = ctypes.addressof(self._host_view)
        uclib.uc_mem_map_ptr(
            live.handle, ctypes.c_uint64(HOST_PAGES), ctypes.c_size_t(0x5000), UC_PROT_ALL,
            ctypes.c_void_p(base),
        )  # fmt: skip
        ctypes.memset(base + _MSR_BITMAP, 0xFF, 0x4000)
        ctypes.c_uint64.from_address(base + 0x48).value = HOST_PAGES + _MSR_BITMAP
        self._fault_address = ctypes.c_uint64.from_address(base + _EXIT_INFO_2)
        ctypes.c_uint64.from_address(env + image.VMCB).value = HOST_PAGES
        ctypes.c_uint32.from_address(env + image.INTERCEPT_EXCEPTIONS).value = 0xFFFFFFFF
        for offset in (image.DR_READ, image.DR_WRITE):
            ctypes.c_uint16.from_address(env + offset).value = 0xFFFF
        ctypes.c_uint16.from_address(env + image.CR_WRITE).value = intercepts.CR_WRITES
        ctypes.c_uint32.from_address(env + image.OLD_EXCEPTION).value = 0xFFFFFFFF
        ctypes.c_uint32.from_address(env + image.HFLAGS2).value = (
            image.HF2_GIF | image.HF2_HIF | image.HF2_VINTR | image.HF2_NPT
        )
        ctypes.c_uint64.from_address(env + image.NESTED_CR3).value = self._nested.root
        ctypes.c_uint32.from_address(env + image.NESTED_MODE).value = image.NESTED_LONG_NX
        self._hflags.value |= image.HF_GUEST | image.HF_IOBPT
        image.set_features(env)
        self.arm(frozenset())

    def _self_test(self) -> None:
        """Run one intercepted CPUID and one kick; raise EngineError if they do not come out.

        The code lies in the engine's own page, reached in 64-bit mode without paging.
        """
        hflags2 = ctypes.c_uint32.from_address(self.live.env + image.HFLAGS2)
        hflags2.value &= ~image.HF2_NPT
        self._host[_TEST_CODE : _TEST_CODE + 2] = b"\x0f\xa2"
        mode = image.HF_PE | image.HF_LMA | image.HF_CS64 | image.HF_CS32 | image.HF_SS32
        self._hflags.value = self._hflags.value & image.HF_GUEST | image.HF_IOBPT | mode
        self._rip.value = HOST_PAGES + _TEST_CODE
        for request, expected in ((0, intercepts.EXIT_CPUID), (KICK_BIT, intercepts.EXIT_INTR)):
            self._request.value = request
            self._exception.value = -1
            error = self._start(*self._arguments, self._count)
            if (error, self._exception.value) != (image.UC_ERR_EXCEPTION, expected):
                raise image.unknown_layout("its intercepts")
        self._request.value = 0
        self._hflags.value &= image.HF_GUEST | image.HF_IOBPT
        hflags2.value |= image.HF2_NPT

    def reset(self) -> None:
        """Put the registers in the state after RESET. SDM Vol. 3, "Processor State After Reset"."""
        for number in range(16):
            self._gpr[number] = 0
        self._gpr[2] = 0x600
        self.efer = 0
        self.cr4 = 0
        self.cr3 = 0
        self.cr2 = 0
        self.cr0 = 0x60000010
        self.rflags = 2
        self.shadow = 0
        self.rip = 0xFFF0
        for segment in range(6):
            self.set_segment(segment, real_mode_segment(0))
        self.set_segment(1, SegmentRegister(0xF000, 0xFFFF0000, 0xFFFF, AccessRights.REAL_CODE))
        self.set_segment(6, SegmentRegister(0, 0, 0xFFFF, AccessRights.LDT))
        self.set_segment(7, SegmentRegister(0, 0, 0xFFFF, AccessRights.BUSY_TSS))
        self.gdtr = TableRegister(0, 0xFFFF)
        self.idtr = TableRegister(0, 0xFFFF)
        self.dr[:] = [0, 0, 0, 0, 0, 0, 0xFFFF0FF0, 0x400]
        self.xcr0 = 1

    def close(self) -> None:
        """Free the engine. Using the CPU afterwards is an error of the caller."""
        handle, self._handle = self._handle, None
        if handle is not None:
            uclib.uc_close(handle)
            self.memory.close()

    def __del__(self) -> None:
        """Free the engine of a CPU that nobody closed."""
        if getattr(self, "_handle", None) is not None:
            self.close()

    # ---- what the engine is told

    def arm(self, kinds: frozenset[TrapKind]) -> None:
        """Choose which of the optional kinds are handed up (intercepts.OPTIONAL)."""
        env = self.live.env
        word = intercepts.intercept_word(kinds)
        ctypes.c_uint64.from_address(env + image.INTERCEPT).value = word
        reads = intercepts.control_register_reads(kinds)
        ctypes.c_uint16.from_address(env + image.CR_READ).value = reads

    def kick(self) -> None:
        """Make run() return EventTrap(KICK) soon. Safe from any thread; never lost."""
        self._kicked = True
        self._request.value = KICK_BIT
        self._stop.value = 0xFFFF

    def poke(self) -> None:
        """Let run() come up for air without returning, so that Python can handle signals."""
        self._request.value = KICK_BIT
        self._stop.value = 0xFFFF

    @property
    def interrupt_window(self) -> bool:
        """Whether to trap INTERRUPT_WINDOW once interrupts can be delivered."""
        return self._window.value != 0

    @interrupt_window.setter
    def interrupt_window(self, value: bool) -> None:
        self._window.value = WINDOW_BIT if value else 0

    @property
    def budget(self) -> int:
        """Translated blocks until EventTrap(BUDGET); 0 for no end."""
        return self._counter.budget

    @budget.setter
    def budget(self, value: int) -> None:
        self._counter.set(value)
        self._count.value = self._counter.limit

    @property
    def blocks(self) -> int:
        """Translated blocks executed since a budget was first set."""
        return self._counter.executed

    def flush_tlb(self) -> None:
        """Forget every cached translation of addresses."""
        self.translation_changed()

    def invlpg(self, gva: int) -> None:
        """Forget the translation of one linear address (and, in this engine, all others)."""
        self.translation_changed()

    def translation_changed(self) -> None:
        """Forget cached translations: the engine's, and where our own decoded code lies."""
        super().translation_changed()
        self._sites.clear()
        self._code_pages.clear()

    def _memory_changed(self) -> None:
        """Forget translations and code after guest-physical memory came or went."""
        self.translation_changed()
        self.code.forget()

    def _flush_code(self) -> None:
        self._sites.clear()
        flush_code(self.live.handle)

    # ---- the run

    def run(self) -> Trap:
        """Run guest instructions up to the next trap; RIP is on the instruction that trapped."""
        start, arguments, count = self._start, self._arguments, self._count
        ports = self.ports
        while True:
            error = start(*arguments, count)
            noted = ports.noted
            if noted is not None:
                ports.noted = None
                return self._noted_trap(noted)
            if error == 21:
                code = self._exception.value
                rip = self._rip.value
                site = self._sites.get(rip)
                if (
                    site is not None
                    and site[3] == self._hflags.value & _MODE
                    and site[5].value & site[6] == site[7]
                    and site[4] == self._cs_base.value
                    and site[0] is not None
                    and (0x164 < code < 0x500 or code < 0x140)
                ):
                    if count.value:
                        self._counter.ran(False)
                        count.value = self._counter.limit
                    return site[0]
                trap = self._trap(code, rip)
            else:
                trap = self._other(error)
            if count.value:
                self._counter.ran(trap is None or trap[0] is TrapKind.BUDGET)
                count.value = self._counter.limit
            if trap is not None:
                return trap

    def _trap(self, code: int, rip: int) -> Trap | None:
        """The record for one of the engine's exit codes."""
        if code == intercepts.EXIT_INTR:
            self._request.value = 0
            if self._kicked:
                self._kicked = False
                return EventTrap(TrapKind.KICK, rip)
            return None
        if code == intercepts.EXIT_VINTR:
            return EventTrap(TrapKind.INTERRUPT_WINDOW, rip)
        if code == intercepts.EXIT_NPF:
            return self._memory_trap(rip)
        if intercepts.EXCEPTION_BASE <= code < intercepts.EXCEPTION_BASE + 32:
            return self._exception_trap(code, rip)
        site = self._site(rip)
        if site is None or site.trap is None:
            where = f"{rip:#x} ({site.insn.mnemonic})" if site is not None else f"{rip:#x}"
            raise EngineError(f"the engine left the guest with code {code:#x} at RIP {where}")
        return site.trap

    def _exception_trap(self, code: int, rip: int) -> Trap:
        """A hardware exception; or, of #UD and #GP, what the engine cannot run but a CPU can."""
        vector = code - intercepts.EXCEPTION_BASE
        if code == _PF:
            address = self._fault_address.value
            error_code = self._error_code.value
            return ExceptionTrap(TrapKind.EXCEPTION, rip, vector, error_code, address, None)
        insn = None
        if code in (_UD, _GP):
            site = self._site(rip)
            if site is not None:
                insn = site.insn
                if site.trap is not None and self._engine_is_wrong(code, site):
                    return site.trap
        address = Dr6.BS if code == _DB else 0
        error_code = self._error_code.value if vector in (8, 10, 11, 12, 13, 17) else 0
        return ExceptionTrap(TrapKind.EXCEPTION, rip, vector, error_code, address, insn)

    def _engine_is_wrong(self, code: int, site: _Site) -> bool:
        """Whether a processor would not raise this #UD or #GP."""
        if site.insn.lock:
            return False
        if code == _UD:
            return site.kind in UNDEFINED_TO_THE_ENGINE
        # The engine has CR4.PCE the wrong way round.
        return site.kind is TrapKind.RDPMC and self.cr4 & 1 << 8 != 0

    def _other(self, error: int) -> Trap | None:
        """The record for a run that ended without an intercept."""
        rip = self._rip.value
        if error == 0:
            if self._counter.expired():
                return EventTrap(TrapKind.BUDGET, rip)
            return None
        raise EngineError(f"Unicorn stopped with error {error} at RIP {rip:#x}")

    def _memory_trap(self, rip: int) -> MemoryTrap:
        """The record of an access to nothing, or of a write to read-only memory."""
        gpa, reason = self._fault_address.value, self._error_code.value
        access = 2 if reason & 16 else 1 if reason & 2 else 0
        backed = self.memory.backed(gpa, 1)
        gva: int | None = None
        size = 1
        if access == 2:
            gva = rip if self.mode_bits == 64 else self._cs_base.value + rip & 0xFFFFFFFF
        else:
            site = self._site(rip)
            if site is not None:
                gva, size = self.linear.guess(site.insn, gpa)
        return MemoryTrap(TrapKind.MEMORY, rip, gpa, size, access, 0, gva, backed)

    def _noted_trap(self, noted: Noted) -> Trap:
        """The record of IN, OUT, SYSCALL or SYSENTER, noted by a callback."""
        if self._count.value:
            self._counter.ran(False)
            self._count.value = self._counter.limit
        kind, port, size, value, registers = noted
        ports = self.ports
        if kind is AFTER:
            ports.disarm()
            return EventTrap(TrapKind.KICK, self._rip.value)
        if kind is ERROR:
            ports.disarm()
            error, ports.error = ports.error, None
            raise error or EngineError("a port callback failed without saying why")
        ports.put_back(registers)
        rip = self._rip.value
        if kind is SYSCALL:
            if not self._kicked:
                self._request.value = 0
            return self._trap_at(rip)
        site = self._sites.get(rip)
        if (
            site is None
            or site[5].value & site[6] != site[7]
            or site[3] != self._hflags.value & _MODE
            or site[4] != self._cs_base.value
        ):
            site = self._site(rip)
            if site is None:
                raise EngineError(f"no I/O instruction at RIP {rip:#x}")
        insn = site[1]
        string = len(insn[0]) > 3
        return tuple.__new__(
            IoTrap,
            (TrapKind.IO, rip, insn, kind is IN, port, size, value, string, insn[6] != 0),
        )

    # ---- decoding

    def _trap_at(self, rip: int) -> Trap:
        """The trap of the instruction at RIP, which is known to be one."""
        site = self._site(rip)
        if site is None or site.trap is None:
            raise EngineError(f"the engine stopped at RIP {rip:#x} for no known instruction")
        return site.trap

    def _site(self, rip: int) -> _Site | None:
        """Decode the instruction at RIP; None when its bytes cannot be read or are none."""
        mode = self._hflags.value & _MODE
        base = self._cs_base.value
        site = self._sites.get(rip)
        if (
            site is not None
            and site.mode == mode
            and site.cs_base == base
            and site.word.value & site.mask == site.bytes
        ):
            return site
        linear = rip if mode & image.HF_CS64 else (base + rip) & 0xFFFFFFFF
        code = self._fetch(linear)
        bits = self.mode_bits
        key = (code, bits)
        decoded = self._decoded.get(key)
        if decoded is None:
            decoded = self._decoder.decode(code, bits)
            if decoded is None:
                return None
            if len(self._decoded) > 4096:
                self._decoded.clear()
            self._decoded[key] = decoded
        return self._remember(rip, linear, mode, base, decoded)

    def _remember(
        self,
        rip: int,
        linear: int,
        mode: int,
        base: int,
        decoded: tuple[TrapKind | None, Instruction],
    ) -> _Site:
        """Keep a decoded instruction at its RIP if its bytes can be watched with one read."""
        kind, insn = decoded
        trap = InsnTrap(kind, rip, insn) if kind is not None else None
        gpa = self._locate(linear)
        region = self.memory.region_at(gpa) if gpa >= 0 else None
        length = min(insn.length, 8)
        fits = region is not None and linear % PAGE + 8 <= PAGE and insn.length <= 8
        word = ctypes.c_uint64(0)
        if fits and region is not None:
            word = ctypes.c_uint64.from_address(region.address + gpa - region.gpa)
        mask = (1 << 8 * length) - 1
        value = int.from_bytes(insn.code[:8], "little") & mask
        site = _Site(trap, insn, kind, mode, base, word, mask, value)
        if fits:
            if len(self._sites) > 65536:
                self._sites.clear()
            self._sites[rip] = site
        return site

    def _fetch(self, linear: int) -> bytes:
        """Up to fifteen bytes of code at a linear address, fewer where memory ends."""
        code = b""
        while len(code) < 15:
            gpa = self._locate(linear)
            if gpa < 0 or self.memory.region_at(gpa) is None:
                break
            step = min(15 - len(code), PAGE - linear % PAGE)
            try:
                code += self.memory.read(gpa, step)
            except LookupError:
                break
            linear += step
        return code

    def _locate(self, linear: int) -> int:
        """The guest-physical address of code at a linear address, -1 for none; remembered."""
        page = linear & -PAGE
        gpa = self._code_pages.get(page)
        if gpa is None:
            try:
                found = self.linear.translate(page, 0, False, mark=False)
            except LookupError:
                return -1
            if isinstance(found, PageFault):
                return -1
            gpa = self._code_pages[page] = found
        return gpa + linear % PAGE

    # ---- memory in the guest's name

    def read_linear(
        self, gva: int, size: int, access: int = 0, user: bool | None = None
    ) -> bytes | PageFault | MemoryTrap:
        """Read through the guest's page tables; ``user`` None means by CPL."""
        return self.linear.read(gva, size, access, user)

    def write_linear(
        self, gva: int, data: bytes, user: bool | None = None
    ) -> PageFault | MemoryTrap | None:
        """Write through the guest's page tables, all or nothing."""
        return self.linear.write(gva, data, user)

    def linear_address(self, insn: Instruction, operand: Operand) -> int:
        """The linear address of a memory operand."""
        return self.linear.address(insn, operand)

    # ---- x87 and SSE

    def xmm(self, number: int) -> bytes:
        """The sixteen bytes of an XMM register."""
        return ctypes.string_at(self.live.xmm + 64 * number, 16)

    def set_xmm(self, number: int, value: bytes) -> None:
        """Set an XMM register."""
        ctypes.memmove(self.live.xmm + 64 * number, value, 16)

    def fxsave(self) -> bytes:
        """The 512 bytes FXSAVE would store."""
        return fpu.fxsave(self.live)

    def fxrstor(self, saved: bytes) -> None:
        """Load x87 and SSE state as FXRSTOR would."""
        fpu.fxrstor(self.live, saved)
