"""Exit qualifications: each format a record that encodes and decodes itself.

SDM Vol. 3, "Exit Qualification" tables of "Basic VM-Exit Information". Undefined bits are encoded
as 0 and ignored in decoding. For INVLPG the qualification is the linear address itself.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from vmxsim.arch.instruction_info import GdtrIdtrInfo as GdtrIdtrInfo
from vmxsim.arch.instruction_info import LdtrTrInfo as LdtrTrInfo
from vmxsim.arch.instruction_info import MemoryAddress as MemoryAddress
from vmxsim.arch.instruction_info import RandomInfo as RandomInfo
from vmxsim.arch.instruction_info import StringIoInfo as StringIoInfo
from vmxsim.arch.instruction_info import SystemSegmentInstruction as SystemSegmentInstruction
from vmxsim.arch.instruction_info import TableInstruction as TableInstruction
from vmxsim.arch.instruction_info import VmxInstructionInfo as VmxInstructionInfo


class Direction(IntEnum):
    """Direction of an I/O instruction, as bit 3 of its qualification has it."""

    OUT = 0
    IN = 1


class IoQualification(NamedTuple):
    """I/O instructions.

    31:16 port   6 immediate   5 REP   4 string   3 direction   2:0 size - 1
    """

    size: int
    direction: Direction
    string: bool = False
    rep: bool = False
    immediate: bool = False
    port: int = 0

    def encode(self) -> int:
        """The exit qualification."""
        return (
            self.port << 16
            | self.immediate << 6
            | self.rep << 5
            | self.string << 4
            | self.direction << 3
            | self.size - 1
        )

    @classmethod
    def decode(cls, value: int) -> IoQualification:
        """Read an exit qualification."""
        return cls(
            size=(value & 7) + 1,
            direction=Direction(value >> 3 & 1),
            string=bool(value & 1 << 4),
            rep=bool(value & 1 << 5),
            immediate=bool(value & 1 << 6),
            port=value >> 16 & 0xFFFF,
        )


class CrAccess(IntEnum):
    """What was done to a control register."""

    MOV_TO = 0
    MOV_FROM = 1
    CLTS = 2
    LMSW = 3


class CrQualification(NamedTuple):
    """Control-register accesses.

    31:16 LMSW source   11:8 GPR   6 LMSW from memory   5:4 access   3:0 register
    """

    cr: int
    access: CrAccess
    lmsw_memory: bool = False
    gpr: int = 0
    lmsw_source: int = 0

    def encode(self) -> int:
        """The exit qualification."""
        return (
            self.lmsw_source << 16
            | self.gpr << 8
            | self.lmsw_memory << 6
            | self.access << 4
            | self.cr
        )

    @classmethod
    def decode(cls, value: int) -> CrQualification:
        """Read an exit qualification."""
        return cls(
            cr=value & 0xF,
            access=CrAccess(value >> 4 & 3),
            lmsw_memory=bool(value & 1 << 6),
            gpr=value >> 8 & 0xF,
            lmsw_source=value >> 16 & 0xFFFF,
        )


class DrQualification(NamedTuple):
    """MOV DR.

    11:8 GPR   4 direction (1: from the debug register)   2:0 register
    """

    dr: int
    from_dr: bool
    gpr: int

    def encode(self) -> int:
        """The exit qualification."""
        return self.gpr << 8 | self.from_dr << 4 | self.dr

    @classmethod
    def decode(cls, value: int) -> DrQualification:
        """Read an exit qualification."""
        return cls(value & 7, bool(value & 1 << 4), value >> 8 & 0xF)


class EptQualification(NamedTuple):
    """EPT violations: what was tried (2:0), what the EPT allows (6:3), and for what address.

    7 linear address valid   8 the page itself (0: a paging structure of the guest)   9 user page
    10 writable page   11 execute-disable page   12 NMI unblocking by IRET   (9 to 11: only with
    advanced information)
    """

    read: bool = False
    write: bool = False
    fetch: bool = False
    readable: bool = False
    writable: bool = False
    executable: bool = False
    user_executable: bool = False
    linear_address_valid: bool = False
    translated: bool = False
    user_page: bool = False
    writable_page: bool = False
    no_execute_page: bool = False
    nmi_unblocking: bool = False
    shadow_stack: bool = False
    supervisor_shadow_stack: bool = False
    paging_verification: bool = False
    asynchronous: bool = False

    def encode(self) -> int:
        """The exit qualification."""
        return sum(1 << bit for bit, value in enumerate(self) if value)

    @classmethod
    def decode(cls, value: int) -> EptQualification:
        """Read an exit qualification."""
        return cls(*(bool(value >> bit & 1) for bit in range(len(cls._fields))))


class ApicAccess(NamedTuple):
    """APIC accesses.

    15:12 kind (0 read, 1 write, 2 fetch, 3 event delivery; 10, 15 guest-physical)   11:0 offset
    """

    offset: int
    kind: int

    def encode(self) -> int:
        """The exit qualification."""
        return self.kind << 12 | self.offset

    @classmethod
    def decode(cls, value: int) -> ApicAccess:
        """Read an exit qualification."""
        return cls(value & 0xFFF, value >> 12 & 0xF)


class TaskSwitchSource(IntEnum):
    """What started a task switch."""

    CALL = 0
    IRET = 1
    JMP = 2
    TASK_GATE = 3


class TaskSwitch(NamedTuple):
    """Task switches.

    31:30 source   15:0 selector of the new TSS
    """

    selector: int
    source: TaskSwitchSource

    def encode(self) -> int:
        """The exit qualification."""
        return self.source << 30 | self.selector

    @classmethod
    def decode(cls, value: int) -> TaskSwitch:
        """Read an exit qualification."""
        return cls(value & 0xFFFF, TaskSwitchSource(value >> 30 & 3))


class DebugQualification(NamedTuple):
    """Debug exceptions, in the layout of DR6 but active high throughout.

    16 RTM   14 BS   13 BD   11 BLD   3:0 B3 to B0
    """

    breakpoints: int = 0
    bus_lock: bool = False
    register_access: bool = False
    single_step: bool = False
    rtm: bool = False

    def encode(self) -> int:
        """The exit qualification."""
        return (
            self.rtm << 16
            | self.single_step << 14
            | self.register_access << 13
            | self.bus_lock << 11
            | self.breakpoints
        )

    @classmethod
    def decode(cls, value: int) -> DebugQualification:
        """Read an exit qualification."""
        return cls(
            breakpoints=value & 0xF,
            bus_lock=bool(value & 1 << 11),
            register_access=bool(value & 1 << 13),
            single_step=bool(value & 1 << 14),
            rtm=bool(value & 1 << 16),
        )


class MwaitQualification(NamedTuple):
    """MWAIT: bit 0 says whether a MONITOR is armed."""

    armed: bool

    def encode(self) -> int:
        """The exit qualification."""
        return int(self.armed)

    @classmethod
    def decode(cls, value: int) -> MwaitQualification:
        """Read an exit qualification."""
        return cls(bool(value & 1))


class EntryFailure:
    """Exit qualifications of INVALID_STATE; 0 says no more than that."""

    PDPTE = 2
    NMI_INJECTION = 3
    VMCS_LINK_POINTER = 4
