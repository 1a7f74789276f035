"""The engine: Unicorn, run through TCG's own intercept machinery, one Trap at a time.

No hook sits on instructions. The guest runs with TCG's AMD-V guest bit set, so that what VMX might
exit on aborts before it has any effect; run() finds out which instruction it was and returns a
frozen record, with every register exactly at the instruction.
"""

from __future__ import annotations

from collections.abc import Callable

from vmxsim.arch.paging import PageFault
from vmxsim.arch.registers import Cr4, Dr6
from vmxsim.cpu import fixups, intercepts
from vmxsim.cpu.blocks import BlockCounter
from vmxsim.cpu.code import TranslatedCode
from vmxsim.cpu.decode import UNDEFINED_TO_THE_ENGINE
from vmxsim.cpu.engine import WINDOW_BIT, Engine
from vmxsim.cpu.image import UC_ERR_EXCEPTION
from vmxsim.cpu.linear import LinearMemory
from vmxsim.cpu.memory import GuestMemory
from vmxsim.cpu.ports import AFTER, ERROR, IN, SYSCALL, Noted, Ports
from vmxsim.cpu.pulse import Pulse
from vmxsim.cpu.set_state import finish_outs, reset
from vmxsim.cpu.sites import MODE, PlainIo, Site, Sites
from vmxsim.cpu.state import CpuState, flush_code
from vmxsim.cpu.traps import (
    EventTrap,
    ExceptionTrap,
    Instruction,
    IoTrap,
    MemoryTrap,
    Operand,
    Trap,
    TrapKind,
)
from vmxsim.errors import EngineError

_GP = intercepts.EXCEPTION_BASE + 13
_UD = intercepts.EXCEPTION_BASE + 6
_NM = intercepts.EXCEPTION_BASE + 7
_PF = intercepts.EXCEPTION_BASE + 14
_DB = intercepts.EXCEPTION_BASE + 1


class UnicornCpu(CpuState):
    """One guest CPU. Not for two threads at once, except for kick()."""

    def __init__(self) -> None:
        self._engine: Engine | None = None
        self._engine = engine = Engine()
        super().__init__(engine.live)
        self.memory = GuestMemory(engine.handle, engine.nested, self._memory_changed)
        self.linear = LinearMemory(self, self.memory)
        self.sites = Sites(self, self.linear, self.memory)
        self.ports = Ports(engine.live, self.sites.plain)
        self.code = TranslatedCode(engine.live, self.memory, self.sites.locate, self._flush_code)
        self.enter_from_host, self.leave_to_host = self.code.check, self.code.seal
        self._known, self._plain = self.sites.known, self.sites.plain
        self._counter = BlockCounter(engine.live, self._flush_code)
        self._kicked = False
        self._pulse: Pulse | None = None
        self._exception, self._request, self._window = (
            engine.exception,
            engine.request,
            engine.window,
        )
        self._error_code, self._fault_address = engine.error_code, engine.fault_address
        self._count = engine.count
        self.run = self._make_run(engine)
        """Run guest instructions up to the next trap; RIP is on the instruction that trapped."""
        self.reset()

    def reset(self) -> None:
        """Put the registers in the state after RESET."""
        reset(self)

    def close(self) -> None:
        """Free the engine. Using the CPU afterwards is an error of the caller."""
        engine, self._engine = self._engine, None
        if engine is not None:
            if self._pulse is not None:
                self._pulse.stop()
            engine.close()
            self.memory.close()

    def __del__(self) -> None:
        """Free the engine of a CPU that nobody closed."""
        self.close()

    # ---- what the engine is told

    def arm(self, kinds: frozenset[TrapKind]) -> None:
        """Choose which of the optional kinds are handed up (interface.OPTIONAL_KINDS)."""
        self._running.arm(kinds)

    def kick(self) -> None:
        """Make run() return EventTrap(KICK) soon. Safe from any thread; never lost."""
        self._kicked = True
        self._running.interrupt()

    def poke(self) -> None:
        """Let run() come up for air without returning, so that Python can handle signals."""
        self._running.interrupt()

    @property
    def counting(self) -> bool:
        """Whether translated blocks are being counted."""
        return self._count.value != 0

    def keep_interruptible(self) -> None:
        """Let signals through while this thread runs the guest: for the main thread's use."""
        if self._pulse is None:
            self._pulse = Pulse(self)

    @property
    def _running(self) -> Engine:
        """The engine, or EngineError after close()."""
        if self._engine is None:
            raise EngineError("this CPU was closed")
        return self._engine

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
        self.sites.forget()

    def paging_begins(self) -> None:
        """Called before paging is switched on."""
        self._running.nested.allow_execute_everywhere()

    def _memory_changed(self) -> None:
        """Forget translations and code after guest-physical memory came or went."""
        self.translation_changed()
        self.code.forget()

    def _flush_code(self) -> None:
        self._known.clear()
        self._plain.clear()
        flush_code(self.live.handle)

    # ---- the run

    def _make_run(self, engine: Engine) -> Callable[[], Trap]:
        """The run, with all it touches bound: it is the heart of every exit."""
        start, count, ports, counter = engine.start, engine.count, self.ports, self._counter
        handle, rip_view, zero = engine.arguments[:3]
        known, gpr, exception = self._known, self._gpr, engine.exception
        hflags, cs_base = self._hflags, self._cs_base

        def run() -> Trap:
            while True:
                error = start(handle, rip_view, zero, zero, count)
                noted = ports.noted
                if noted is not None:
                    ports.noted = None
                    if isinstance(noted, IoTrap):
                        rip_view.value = noted[1]
                        if noted[3]:
                            gpr[0] = ports.rax
                        if counter.limit:
                            self._ran_to_trap()
                        return noted
                    return self._noted_trap(noted)
                if error == UC_ERR_EXCEPTION:
                    code, rip = exception.value, rip_view.value
                    site = known.get(rip)
                    if (
                        site is not None
                        and site[3] == hflags.value & MODE
                        and site[5].value & site[6] == site[7]
                        and site[4] == cs_base.value
                        and site[0] is not None
                        and (0x164 < code < 0x500 or code < 0x140)
                    ):
                        if counter.limit:
                            self._ran_to_trap()
                        return site[0]
                trap = self._rare(error)
                if trap is not None:
                    return trap

        return run

    def _rare(self, error: int) -> Trap | None:
        """The record of a run that ended in none of the frequent ways; None to go on."""
        if error == UC_ERR_EXCEPTION:
            trap = self._trap(self._exception.value, self._rip.value)
        else:
            trap = self._other(error)
        if self._counter.limit:
            self._counter.ran(trap is None or trap[0] is TrapKind.BUDGET)
            self._count.value = self._counter.limit
        return trap

    def _ran_to_trap(self) -> None:
        """Account for the blocks of a run that a trap ended."""
        self._counter.ran(False)
        self._count.value = self._counter.limit

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
        if code == intercepts.EXIT_SHUTDOWN or code >= intercepts.EXIT_NPF:
            raise EngineError(f"the engine left the guest with code {code:#x} at RIP {rip:#x}")
        return self._trap_at(rip)

    def _exception_trap(self, code: int, rip: int) -> Trap:
        """A hardware exception; or, of #UD and #GP, what the engine cannot run but a CPU can."""
        vector = code - intercepts.EXCEPTION_BASE
        if code == _PF:
            address = self._fault_address.value
            error_code = self._error_code.value
            if not error_code & (fixups.WRITE | fixups.FETCH):
                site = self.sites.at(rip)
                error_code = fixups.page_fault_code(error_code, site.insn if site else None)
            return ExceptionTrap(TrapKind.EXCEPTION, rip, vector, error_code, address, None)
        insn = None
        if code in (_UD, _NM, _GP):
            site = self.sites.at(rip)
            if site is not None:
                insn = site.insn
                if site.trap is not None and self._engine_is_wrong(code, site):
                    return site.trap
                vector = fixups.vector_of(vector, insn, self.cr4)
        address = Dr6.BS if code == _DB else 0
        error_code = self._error_code.value if vector in (8, 10, 11, 12, 13, 17) else 0
        return ExceptionTrap(TrapKind.EXCEPTION, rip, vector, error_code, address, insn)

    def _engine_is_wrong(self, code: int, site: Site) -> bool:
        """Whether a processor would not raise this #UD or #GP."""
        if code == _NM:
            return False
        if code == _UD:
            return site.kind in UNDEFINED_TO_THE_ENGINE
        # The engine has CR4.PCE the wrong way round, and looks at ECX before it looks for exits.
        if site.kind is TrapKind.RDPMC:
            return self.cr4 & Cr4.PCE != 0
        return site.kind in (TrapKind.MONITOR, TrapKind.MWAIT)

    def _other(self, error: int) -> Trap | None:
        """The record for a run that ended without an intercept."""
        rip = self._rip.value
        if error == 0:
            if self._counter.expired():
                return EventTrap(TrapKind.BUDGET, rip)
            return None
        raise EngineError(f"Unicorn stopped with error {error} at RIP {rip:#x}")

    def _memory_trap(self, rip: int) -> MemoryTrap | None:
        """The record of an access to nothing, or of a write to read-only memory.

        None after the first fetch from a page: the guest goes on.
        """
        gpa, reason = self._fault_address.value, self._error_code.value
        access = 2 if reason & 16 else 1 if reason & 2 else 0
        backed = self.memory.backed(gpa, 1)
        if access == 2 and backed and self._running.nested.allow_execute(gpa):
            return None
        gva: int | None = None
        size = 1
        if access == 2:
            gva = rip if self.mode_bits == 64 else self._cs_base.value + rip & 0xFFFFFFFF
        else:
            site = self.sites.at(rip)
            if site is not None:
                gva, size = self.linear.guess(site.insn, gpa)
        return MemoryTrap(TrapKind.MEMORY, rip, gpa, size, access, 0, gva, backed)

    def _noted_trap(self, noted: Noted) -> Trap:
        """The record of IN, OUT, SYSCALL or SYSENTER, noted by a callback."""
        if self._counter.limit:
            self._ran_to_trap()
        kind, port, size, value, registers = noted
        ports = self.ports
        if kind is ERROR:
            ports.disarm()
            error, ports.error = ports.error, None
            raise error or EngineError("a port callback failed without saying why")
        ports.put_back(registers)
        rip = self._rip.value
        if kind is AFTER and not self._is_plain_out(rip):
            site = self.sites.at(rip)
            if site is not None:
                finish_outs(self, site.insn, size)
            return EventTrap(TrapKind.KICK, self._rip.value)
        if kind is SYSCALL:
            if not self._kicked:
                self._request.value = 0
            return self._trap_at(rip)
        site = self._known.get(rip)
        if (
            site is None
            or site[5].value & site[6] != site[7]
            or site[3] != self._hflags.value & MODE
            or site[4] != self._cs_base.value
        ):
            site = self.sites.at(rip)
        if site is None or site.trap is None:
            return self._trap_at(rip)
        insn = site[1]
        string = len(insn[0]) > 3
        if not string and rip in self._known:
            plain = self._plain[rip] = PlainIo(site, rip, kind is IN, port, size)
            if kind is AFTER:
                return plain.trap
        return tuple.__new__(
            IoTrap,
            (TrapKind.IO, rip, insn, kind is IN, port, size, value, string, insn[6] != 0),
        )

    def _is_plain_out(self, rip: int) -> bool:
        """Whether the OUT at RIP is no string instruction, and can be known again."""
        site = self.sites.at(rip)
        return site is not None and site.insn.mnemonic == "out" and rip in self._known

    # ---- decoding

    def _trap_at(self, rip: int) -> Trap:
        """The trap of the instruction at RIP; #UD for an encoding that only the engine takes."""
        site = self.sites.at(rip)
        if site is None or site.trap is None:
            insn = None if site is None else site.insn
            return ExceptionTrap(TrapKind.EXCEPTION, rip, 6, 0, 0, insn)
        return site.trap

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
