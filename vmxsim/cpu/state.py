"""The guest's registers as views of the engine's live state: no copy, no save, no restore.

The general registers are one ctypes array over the engine's own; everything else is read and
written in place, with the engine's hidden flags worked out again after a change that touches them.
"""

from __future__ import annotations

import ctypes
from collections.abc import MutableSequence

from unicorn import UC_CTL_TB_FLUSH, UC_CTL_TLB_FLUSH
from unicorn import x86_const as ux
from unicorn.unicorn_py3.unicorn import uclib

from vmxsim.arch.registers import Cr0, Cr4, Efer, Rflags
from vmxsim.arch.segments import SegmentRegister, TableRegister
from vmxsim.cpu import fpu, image

_u8, _u16, _u32, _u64 = ctypes.c_uint8, ctypes.c_uint16, ctypes.c_uint32, ctypes.c_uint64
ARITHMETIC = Rflags.CF | Rflags.PF | Rflags.AF | Rflags.ZF | Rflags.SF | Rflags.OF
_LDTR, _TR = 6, 7
_HIDDEN_FROM_ENGINE = Cr4.OSXSAVE | Cr4.VMXE
"""CR4 bits the engine must not see: with OSXSAVE 0 it answers XSETBV with #UD, which traps."""

_HFLAGS_KEPT = image.HF_GUEST | image.HF_IOBPT | image.HF_INHIBIT_IRQ

_UC_CTL_WRITE = 1 << 30


class CpuState:
    """Registers, segments, control registers and MSRs of the one guest CPU in an engine."""

    def __init__(self, live: image.Live) -> None:
        env = live.env
        self.live = live
        self._gpr = (_u64 * 16).from_address(env)
        self._rip = _u64.from_address(env + image.EIP)
        self._eflags = _u64.from_address(env + image.EFLAGS)
        self._cc_src = _u64.from_address(env + image.CC_SRC)
        self._cc_op = _u32.from_address(env + image.CC_OP)
        self._df = ctypes.c_int32.from_address(env + image.DF)
        self._hflags = _u32.from_address(env + image.HFLAGS)
        self._cr = (_u64 * 9).from_address(env + image.CR)
        self._efer = _u64.from_address(env + image.EFER)
        self._cs_base = _u64.from_address(env + image.SEGS + image.SEG_SIZE + image.SEG_BASE)
        self._flags_out = _u64()
        self._flags_ref = ctypes.byref(self._flags_out)
        self._extra_cr4 = 0
        self._cr8 = 0
        self.xcr0 = 1
        self.dr = [0, 0, 0, 0, 0, 0, 0xFFFF0FF0, 0x400]
        self._msrs: dict[int, ctypes.c_uint64] = {
            index: _u64.from_address(address) for index, address in live.msrs.items()
        }
        self._other_msrs = {0x277: 0x0007040600070406, 0xC0000103: 0}

    def translation_changed(self) -> None:
        """Called after any change that moves code or data under linear addresses."""
        flush_tlb(self.live.handle)

    def paging_begins(self) -> None:
        """Called before paging is switched on."""

    # ---- registers

    @property
    def gpr(self) -> MutableSequence[int]:
        """RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8..R15, live."""
        return self._gpr  # type: ignore[return-value]

    @property
    def rip(self) -> int:
        """The instruction pointer, an offset in CS."""
        return self._rip.value

    @rip.setter
    def rip(self, value: int) -> None:
        self._rip.value = value

    @property
    def rflags(self) -> int:
        """RFLAGS, the engine's lazy arithmetic flags worked out."""
        if self._cc_op.value == image.CC_OP_EFLAGS:
            flags = self._eflags.value | self._cc_src.value
            return flags | (Rflags.DF if self._df.value < 0 else 0) | 2
        uclib.uc_reg_read(self.live.handle, ux.UC_X86_REG_RFLAGS, self._flags_ref)
        return self._flags_out.value | 2

    @rflags.setter
    def rflags(self, value: int) -> None:
        before = self._eflags.value
        self._cc_src.value = value & ARITHMETIC
        self._cc_op.value = image.CC_OP_EFLAGS
        self._df.value = -1 if value & Rflags.DF else 1
        # The engine takes its lazy flags from here when it starts to run.
        self._eflags.value = value | 2
        if (before ^ value) & Rflags.VM:
            self._refresh()

    @property
    def interrupts_enabled(self) -> bool:
        """RFLAGS.IF."""
        return self._eflags.value & Rflags.IF != 0

    @property
    def cpl(self) -> int:
        """The current privilege level."""
        return self._hflags.value & 3

    @property
    def mode_bits(self) -> int:
        """The code size: 16, 32 or 64."""
        hflags = self._hflags.value
        if hflags & image.HF_CS64:
            return 64
        return 32 if hflags & image.HF_CS32 else 16

    @property
    def hflags(self) -> int:
        """The engine's own flags of the mode (image.HF_*)."""
        return self._hflags.value

    @property
    def cs_base(self) -> int:
        """The base of CS."""
        return self._cs_base.value

    @property
    def shadow(self) -> int:
        """Blocking by STI (1) or by MOV SS (2).

        The engine keeps one bit for both: with IF clear it cannot be STI's.
        """
        if not self._hflags.value & image.HF_INHIBIT_IRQ:
            return 0
        return 1 if self._eflags.value & Rflags.IF else 2

    @shadow.setter
    def shadow(self, value: int) -> None:
        if value & 3:
            self._hflags.value |= image.HF_INHIBIT_IRQ
        else:
            self._hflags.value &= ~image.HF_INHIBIT_IRQ

    def skip(self, length: int) -> None:
        """Move RIP past an instruction, and end the interrupt shadow that it stood in."""
        self._rip.value += length
        if self._hflags.value & image.HF_INHIBIT_IRQ:
            self._hflags.value &= ~image.HF_INHIBIT_IRQ

    # ---- control registers

    @property
    def cr0(self) -> int:
        """CR0."""
        return self._cr[0]

    @cr0.setter
    def cr0(self, value: int) -> None:
        changed = self._cr[0] ^ value
        if changed & value & Cr0.PG:
            self.paging_begins()
        self._cr[0] = value
        self._refresh()
        if changed & (Cr0.PG | Cr0.WP | Cr0.PE):
            self.translation_changed()

    @property
    def cr2(self) -> int:
        """CR2."""
        return self._cr[2]

    @cr2.setter
    def cr2(self, value: int) -> None:
        self._cr[2] = value

    @property
    def cr3(self) -> int:
        """CR3."""
        return self._cr[3]

    @cr3.setter
    def cr3(self, value: int) -> None:
        self._cr[3] = value
        self.translation_changed()

    @property
    def cr4(self) -> int:
        """CR4, with the bits the engine is not shown."""
        return self._cr[4] | self._extra_cr4

    @cr4.setter
    def cr4(self, value: int) -> None:
        self._extra_cr4 = value & _HIDDEN_FROM_ENGINE
        changed = self._cr[4] ^ value & ~_HIDDEN_FROM_ENGINE
        self._cr[4] = value & ~_HIDDEN_FROM_ENGINE
        self._refresh()
        if changed:
            self.translation_changed()

    @property
    def cr8(self) -> int:
        """CR8, the task priority."""
        return self._cr8

    @cr8.setter
    def cr8(self, value: int) -> None:
        self._cr8 = value & 0xF

    @property
    def efer(self) -> int:
        """IA32_EFER."""
        return self._efer.value

    @efer.setter
    def efer(self, value: int) -> None:
        changed = self._efer.value ^ value
        self._efer.value = value
        if changed & (Efer.LMA | Efer.NXE):
            self._refresh()
            self.translation_changed()

    # ---- segments

    def segment(self, segment: int) -> SegmentRegister:
        """One segment register, its rights in the VMCS's form; a null one is unusable."""
        at = self.live.env + image.SEGS + segment * image.SEG_SIZE
        flags = _u32.from_address(at + image.SEG_FLAGS).value
        rights = flags >> 8 & 0xF0FF
        if not rights & 0x80:
            rights |= 1 << 16
        return SegmentRegister(
            _u32.from_address(at).value & 0xFFFF,
            _u64.from_address(at + image.SEG_BASE).value,
            _u32.from_address(at + image.SEG_LIMIT).value,
            rights,
        )

    def set_segment(self, segment: int, value: SegmentRegister) -> None:
        """Load one segment register; loading SS sets the privilege level from its DPL."""
        self._put_segment(segment, value)
        if segment < _LDTR:
            self._refresh()

    def _put_segment(self, segment: int, value: SegmentRegister) -> None:
        at = self.live.env + image.SEGS + segment * image.SEG_SIZE
        rights = value.access_rights
        if rights & 1 << 16:
            rights &= ~0x80
        _u32.from_address(at).value = value.selector
        _u64.from_address(at + image.SEG_BASE).value = value.base
        _u32.from_address(at + image.SEG_LIMIT).value = value.limit
        _u32.from_address(at + image.SEG_FLAGS).value = (rights & 0xF0FF) << 8

    def _table(self, offset: int) -> TableRegister:
        at = self.live.env + offset
        return TableRegister(
            _u64.from_address(at + image.SEG_BASE).value,
            _u32.from_address(at + image.SEG_LIMIT).value,
        )

    def _set_table(self, offset: int, value: TableRegister) -> None:
        at = self.live.env + offset
        _u64.from_address(at + image.SEG_BASE).value = value.base
        _u32.from_address(at + image.SEG_LIMIT).value = value.limit

    @property
    def gdtr(self) -> TableRegister:
        """GDTR."""
        return self._table(image.GDT)

    @gdtr.setter
    def gdtr(self, value: TableRegister) -> None:
        self._set_table(image.GDT, value)

    @property
    def idtr(self) -> TableRegister:
        """IDTR."""
        return self._table(image.IDT)

    @idtr.setter
    def idtr(self, value: TableRegister) -> None:
        self._set_table(image.IDT, value)

    # ---- MSRs

    def msr(self, index: int) -> int:
        """An MSR that the engine holds; KeyError for any other."""
        if index == 0xC0000080:
            return self.efer
        view = self._msrs.get(index)
        return self._other_msrs[index] if view is None else view.value

    def set_msr(self, index: int, value: int) -> None:
        """Set an MSR that the engine holds; KeyError for any other."""
        if index == 0xC0000080:
            self.efer = value
            return
        view = self._msrs.get(index)
        if view is not None:
            view.value = value
        elif index in self._other_msrs:
            self._other_msrs[index] = value
        else:
            raise KeyError(index)

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

    # ---- what the engine derives

    def _refresh(self) -> None:
        """Work out the translator's view of the mode from the registers, as a processor would."""
        cr0, cr4 = self._cr[0], self._cr[4]
        flags = self._hflags.value & _HFLAGS_KEPT
        v8086 = self._eflags.value & Rflags.VM != 0
        cs, ss = self.segment(1), self.segment(2)
        long_mode = self._efer.value & Efer.LMA != 0
        flags |= image.HF_PE if cr0 & Cr0.PE else 0
        flags |= (cr0 & (Cr0.MP | Cr0.EM | Cr0.TS)) << 8
        flags |= image.HF_LMA if long_mode else 0
        flags |= image.HF_OSFXSR if cr4 & Cr4.OSFXSR else 0
        flags |= image.HF_SMAP if cr4 & Cr4.SMAP else 0
        if cr0 & Cr0.PE:
            flags |= 3 if v8086 else ss.access_rights >> 5 & 3
        if long_mode and cs.access_rights & 1 << 13:
            flags |= image.HF_CS64 | image.HF_CS32 | image.HF_SS32
        else:
            flags |= image.HF_CS32 if cs.access_rights & 1 << 14 else 0
            flags |= image.HF_SS32 if ss.access_rights & 1 << 14 else 0
            flat = ss.base == self.segment(3).base == self.segment(0).base == 0
            if not (cr0 & Cr0.PE and not v8086 and flags & image.HF_CS32 and flat):
                flags |= image.HF_ADDSEG
        self._hflags.value = flags


def flush_tlb(handle: int) -> None:
    """Forget every translation the engine has cached."""
    uclib.uc_ctl(handle, UC_CTL_TLB_FLUSH | _UC_CTL_WRITE)


def flush_code(handle: int) -> None:
    """Forget every translated block."""
    uclib.uc_ctl(handle, UC_CTL_TB_FLUSH | _UC_CTL_WRITE)
