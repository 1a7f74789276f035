"""The checks of the guest's segment registers: most of them hold only for registers in use.

SDM Vol. 3, "Checks on Guest Segment Registers". A guest that will be in virtual-8086 mode has
three rules of its own, and is excused from most others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from vmxsim.arch.bits import MASK_32, MASK_64
from vmxsim.arch.registers import Cr0
from vmxsim.arch.segments import AccessRights, SystemType
from vmxsim.arch.vmcs_fields import VmcsField as F
from vmxsim.vmx.entry_checks import (
    SECONDARY,
    EntryState,
    canonical_address,
    check,
    checks_in,
    must_be_zero,
    wrong,
)


class SegmentFields(NamedTuple):
    """The four fields of one segment register."""

    selector: F
    base: F
    limit: F
    rights: F


SEGMENTS: tuple[SegmentFields, ...] = tuple(
    SegmentFields(
        F(F.GUEST_ES_SELECTOR + 2 * i),
        F(F.GUEST_ES_BASE + 2 * i),
        F(F.GUEST_ES_LIMIT + 2 * i),
        F(F.GUEST_ES_AR_BYTES + 2 * i),
    )
    for i in range(8)
)
"""By arch.segments.Segment: the VMCS has them in the same order."""

ES, CS, SS, DS, FS, GS, LDTR, TR = SEGMENTS
SIX = SEGMENTS[:6]
DATA = (DS, ES, FS, GS)

_RIGHTS = tuple(each.rights for each in SIX)
_SELECTORS = tuple(each.selector for each in SIX)
_BASES = tuple(each.base for each in SIX)
_LIMITS = tuple(each.limit for each in SIX)
_V8086 = F.GUEST_RFLAGS
ACCESSED_CODE = (9, 11, 13, 15)
READ_WRITE_ACCESSED = 3
EXPAND_DOWN_ACCESSED = 7


def _usable(state: EntryState, fields: tuple[SegmentFields, ...]) -> Iterator[SegmentFields]:
    return (each for each in fields if not state[each.rights] & AccessRights.UNUSABLE)


def _first(
    state: EntryState,
    fields: Iterator[SegmentFields],
    complaint: Callable[[EntryState, SegmentFields], str | None],
) -> str | None:
    return next((bad for each in fields if (bad := complaint(state, each))), None)


def _protected(state: EntryState) -> Iterator[SegmentFields]:
    """CS always and the others if usable; none of them in virtual-8086 mode."""
    if state.v8086:
        return iter(())
    return (each for each in SIX if each is CS or not state[each.rights] & AccessRights.UNUSABLE)


# Selector fields


@check(F.GUEST_TR_SELECTOR)
def tr_selector_ti(state: EntryState) -> str | None:
    """TR. The TI flag (bit 2) must be 0."""
    return must_be_zero(state, F.GUEST_TR_SELECTOR, 4)


@check(F.GUEST_LDTR_SELECTOR, F.GUEST_LDTR_AR_BYTES)
def ldtr_selector_ti(state: EntryState) -> str | None:
    """LDTR. If LDTR is usable, the TI flag (bit 2) must be 0."""
    return _first(state, _usable(state, (LDTR,)), lambda s, f: must_be_zero(s, f.selector, 4))


@check(F.GUEST_SS_SELECTOR, F.GUEST_CS_SELECTOR, _V8086, *SECONDARY)
def ss_rpl_is_cs_rpl(state: EntryState) -> str | None:
    """SS. Without virtual-8086 mode and unrestricted guest, its RPL must equal the RPL of CS."""
    ss, cs = state[F.GUEST_SS_SELECTOR], state[F.GUEST_CS_SELECTOR]
    if state.v8086 or state.unrestricted or ss & 3 == cs & 3:
        return None
    return wrong(F.GUEST_SS_SELECTOR, ss, f"the RPL must be {cs & 3}, that of CS")


# Base-address fields


@check(_V8086, *_BASES, *_SELECTORS)
def v8086_bases(state: EntryState) -> str | None:
    """In virtual-8086 mode each base must be the selector field shifted left 4 bits."""
    for fields in SIX if state.v8086 else ():
        base, wanted = state[fields.base], state[fields.selector] << 4
        if base != wanted:
            return wrong(fields.base, base, f"must be {wanted:#x} in virtual-8086 mode")
    return None


@check(F.GUEST_TR_BASE, F.GUEST_FS_BASE, F.GUEST_GS_BASE)
def tr_fs_gs_bases_canonical(state: EntryState) -> str | None:
    """TR, FS, GS. The address must be canonical."""
    bases = (F.GUEST_TR_BASE, F.GUEST_FS_BASE, F.GUEST_GS_BASE)
    return next((bad for field in bases if (bad := canonical_address(state, field))), None)


@check(F.GUEST_LDTR_BASE, F.GUEST_LDTR_AR_BYTES)
def ldtr_base_canonical(state: EntryState) -> str | None:
    """LDTR. If LDTR is usable, the address must be canonical."""
    return _first(state, _usable(state, (LDTR,)), lambda s, f: canonical_address(s, f.base))


@check(F.GUEST_CS_BASE)
def cs_base_width(state: EntryState) -> str | None:
    """CS. Bits 63:32 of the address must be zero."""
    return must_be_zero(state, F.GUEST_CS_BASE, MASK_64 & ~MASK_32)


@check(*(field for each in (SS, DS, ES) for field in (each.base, each.rights)))
def ss_ds_es_base_width(state: EntryState) -> str | None:
    """SS, DS, ES. If the register is usable, bits 63:32 of the address must be zero."""
    high = MASK_64 & ~MASK_32
    return _first(state, _usable(state, (SS, DS, ES)), lambda s, f: must_be_zero(s, f.base, high))


# Limit fields


@check(_V8086, *_LIMITS)
def v8086_limits(state: EntryState) -> str | None:
    """In virtual-8086 mode each limit must be 0000FFFFH."""
    for fields in SIX if state.v8086 else ():
        if state[fields.limit] != 0xFFFF:
            return wrong(fields.limit, state[fields.limit], "must be 0xffff in virtual-8086 mode")
    return None


# Access-rights fields of CS, SS, DS, ES, FS and GS


@check(_V8086, *_RIGHTS)
def v8086_access_rights(state: EntryState) -> str | None:
    """In virtual-8086 mode each access-rights field must be 000000F3H."""
    for fields in SIX if state.v8086 else ():
        if state[fields.rights] != 0xF3:
            return wrong(fields.rights, state[fields.rights], "must be 0xf3 in virtual-8086 mode")
    return None


@check(_V8086, F.GUEST_CS_AR_BYTES, *SECONDARY)
def cs_type(state: EntryState) -> str | None:
    """Type, CS: 9, 11, 13 or 15 (accessed code), or 3 if "unrestricted guest" is 1."""
    rights = state[F.GUEST_CS_AR_BYTES]
    kind = rights & AccessRights.TYPE
    if state.v8086 or kind in ACCESSED_CODE:
        return None
    if kind == READ_WRITE_ACCESSED and state.unrestricted:
        return None
    return wrong(F.GUEST_CS_AR_BYTES, rights, "the type must be that of accessed code")


@check(_V8086, F.GUEST_SS_AR_BYTES)
def ss_type(state: EntryState) -> str | None:
    """Type, SS: if it is usable, 3 or 7 (read/write, accessed data)."""
    rights = state[F.GUEST_SS_AR_BYTES]
    if state.v8086 or rights & AccessRights.UNUSABLE:
        return None
    if rights & AccessRights.TYPE in (READ_WRITE_ACCESSED, EXPAND_DOWN_ACCESSED):
        return None
    return wrong(F.GUEST_SS_AR_BYTES, rights, "the type must be 3 or 7")


@check(_V8086, *(each.rights for each in DATA))
def data_segments_accessed(state: EntryState) -> str | None:
    """Type, DS, ES, FS, GS: if the register is usable, bit 0 (accessed) must be 1."""
    for fields in _usable(state, DATA) if not state.v8086 else ():
        if not state[fields.rights] & AccessRights.ACCESSED:
            return wrong(fields.rights, state[fields.rights], "bit 0, accessed, must be 1")
    return None


@check(_V8086, *(each.rights for each in DATA))
def data_segments_readable(state: EntryState) -> str | None:
    """Type, DS, ES, FS, GS: if it is usable and a code segment, it must be a readable one."""
    for fields in _usable(state, DATA) if not state.v8086 else ():
        rights = state[fields.rights]
        if rights & AccessRights.CODE and not rights & AccessRights.READABLE:
            return wrong(fields.rights, rights, "bit 1, readable, must be 1 in a code segment")
    return None


@check(_V8086, *_RIGHTS)
def segments_are_code_or_data(state: EntryState) -> str | None:
    """S (bit 4). If the register is CS or usable, S must be 1."""
    for fields in _protected(state):
        if not state[fields.rights] & AccessRights.S:
            return wrong(fields.rights, state[fields.rights], "bit 4, S, must be 1")
    return None


@check(_V8086, F.GUEST_CS_AR_BYTES, F.GUEST_SS_AR_BYTES)
def cs_dpl(state: EntryState) -> str | None:
    """DPL, CS: 0 for type 3, that of SS for type 9 or 11, at most that for type 13 or 15."""
    rights, kind = state[F.GUEST_CS_AR_BYTES], state[F.GUEST_CS_AR_BYTES] & AccessRights.TYPE
    dpl, ss_dpl = rights >> 5 & 3, state[F.GUEST_SS_AR_BYTES] >> 5 & 3
    if state.v8086:
        return None
    if kind == READ_WRITE_ACCESSED:
        good, wanted = dpl == 0, "0 for a data segment"
    elif kind & AccessRights.CONFORMING:
        good, wanted = dpl <= ss_dpl, f"at most {ss_dpl}, that of SS"
    else:
        good, wanted = dpl == ss_dpl, f"{ss_dpl}, that of SS"
    return None if good else wrong(F.GUEST_CS_AR_BYTES, rights, f"the DPL must be {wanted}")


@check(_V8086, F.GUEST_SS_AR_BYTES, F.GUEST_SS_SELECTOR, *SECONDARY)
def ss_dpl_is_its_rpl(state: EntryState) -> str | None:
    """DPL, SS: without "unrestricted guest" it must equal the RPL from the selector field."""
    rights, rpl = state[F.GUEST_SS_AR_BYTES], state[F.GUEST_SS_SELECTOR] & 3
    if state.v8086 or state.unrestricted or rights >> 5 & 3 == rpl:
        return None
    return wrong(F.GUEST_SS_AR_BYTES, rights, f"the DPL must be {rpl}, the selector's RPL")


@check(_V8086, F.GUEST_SS_AR_BYTES, F.GUEST_CS_AR_BYTES, F.GUEST_CR0)
def ss_dpl_in_real_mode(state: EntryState) -> str | None:
    """DPL, SS: it must be 0 if CS is of type 3, or if bit 0 of CR0 (PE) is 0."""
    rights, cs_kind = state[F.GUEST_SS_AR_BYTES], state[F.GUEST_CS_AR_BYTES] & AccessRights.TYPE
    if state.v8086 or not rights & AccessRights.DPL:
        return None
    if state[F.GUEST_CR0] & Cr0.PE and cs_kind != READ_WRITE_ACCESSED:
        return None
    return wrong(F.GUEST_SS_AR_BYTES, rights, "the DPL must be 0 as CS is of type 3 or PE is 0")


@check(_V8086, *(f for each in DATA for f in (each.rights, each.selector)), *SECONDARY)
def data_segments_dpl(state: EntryState) -> str | None:
    """DPL, DS, ES, FS, GS: if usable and of type 0 to 11, at least the RPL of the selector."""
    if state.v8086 or state.unrestricted:
        return None
    for fields in _usable(state, DATA):
        rights, rpl = state[fields.rights], state[fields.selector] & 3
        if rights & AccessRights.TYPE <= 11 and rights >> 5 & 3 < rpl:
            return wrong(fields.rights, rights, f"the DPL must be at least {rpl}, the RPL")
    return None


@check(_V8086, *_RIGHTS)
def segments_are_present(state: EntryState) -> str | None:
    """P (bit 7). If the register is CS or usable, P must be 1."""
    for fields in _protected(state):
        if not state[fields.rights] & AccessRights.P:
            return wrong(fields.rights, state[fields.rights], "bit 7, P, must be 1")
    return None


@check(_V8086, *_RIGHTS)
def segments_reserved_bits(state: EntryState) -> str | None:
    """Reserved bits 11:8 and 31:17. If the register is CS or usable, they must all be 0."""
    reserved = AccessRights.RESERVED
    return _first(state, _protected(state), lambda s, f: must_be_zero(s, f.rights, reserved))


@check(_V8086, F.GUEST_CS_AR_BYTES, F.VM_ENTRY_CONTROLS)
def cs_default_size_in_64_bit_mode(state: EntryState) -> str | None:
    """D/B, CS: it must be 0 for an IA-32e mode guest with the L bit set."""
    rights = state[F.GUEST_CS_AR_BYTES]
    if state.v8086 or not state.ia32e or not rights & AccessRights.L:
        return None
    return must_be_zero(state, F.GUEST_CS_AR_BYTES, AccessRights.DB)


def _granularity(state: EntryState, fields: SegmentFields) -> str | None:
    rights, limit = state[fields.rights], state[fields.limit]
    if limit & 0xFFF != 0xFFF and rights & AccessRights.G:
        return wrong(fields.rights, rights, f"bit 15, G, must be 0 for the limit {limit:#x}")
    if limit >> 20 and not rights & AccessRights.G:
        return wrong(fields.rights, rights, f"bit 15, G, must be 1 for the limit {limit:#x}")
    return None


@check(_V8086, *_RIGHTS, *_LIMITS)
def segments_granularity(state: EntryState) -> str | None:
    """G (bit 15). If CS or usable: 0 if limit bits 11:0 are not all 1, 1 if any of 31:20 is."""
    return _first(state, _protected(state), _granularity)


# TR


@check(F.GUEST_TR_AR_BYTES, F.VM_ENTRY_CONTROLS)
def tr_type(state: EntryState) -> str | None:
    """Type, TR: 11 (busy TSS), or 3 (busy 16-bit TSS) if the guest is not in IA-32e mode."""
    rights = state[F.GUEST_TR_AR_BYTES]
    kind = rights & AccessRights.TYPE
    if kind == SystemType.TSS_BUSY or (kind == SystemType.TSS16_BUSY and not state.ia32e):
        return None
    return wrong(F.GUEST_TR_AR_BYTES, rights, "the type must be 11, a busy TSS")


@check(F.GUEST_TR_AR_BYTES)
def tr_is_system(state: EntryState) -> str | None:
    """S (bit 4), TR: S must be 0."""
    return must_be_zero(state, F.GUEST_TR_AR_BYTES, AccessRights.S)


@check(F.GUEST_TR_AR_BYTES)
def tr_is_present(state: EntryState) -> str | None:
    """P (bit 7), TR: P must be 1."""
    rights = state[F.GUEST_TR_AR_BYTES]
    return None if rights & AccessRights.P else wrong(F.GUEST_TR_AR_BYTES, rights, "P must be 1")


@check(F.GUEST_TR_AR_BYTES)
def tr_reserved_bits(state: EntryState) -> str | None:
    """Reserved bits 11:8 and 31:17, TR: they must all be 0."""
    return must_be_zero(state, F.GUEST_TR_AR_BYTES, AccessRights.RESERVED)


@check(F.GUEST_TR_AR_BYTES, F.GUEST_TR_LIMIT)
def tr_granularity(state: EntryState) -> str | None:
    """G (bit 15), TR: as for segments."""
    return _granularity(state, TR)


@check(F.GUEST_TR_AR_BYTES)
def tr_is_usable(state: EntryState) -> str | None:
    """Bit 16 (unusable), TR: it must be 0."""
    return must_be_zero(state, F.GUEST_TR_AR_BYTES, AccessRights.UNUSABLE)


# LDTR, if it is usable


@check(F.GUEST_LDTR_AR_BYTES)
def ldtr_type(state: EntryState) -> str | None:
    """Type, LDTR: it must be 2 (LDT)."""
    rights = state[F.GUEST_LDTR_AR_BYTES]
    if rights & AccessRights.UNUSABLE or rights & AccessRights.TYPE == SystemType.LDT:
        return None
    return wrong(F.GUEST_LDTR_AR_BYTES, rights, "the type must be 2, LDT")


@check(F.GUEST_LDTR_AR_BYTES)
def ldtr_is_system(state: EntryState) -> str | None:
    """S (bit 4), LDTR: S must be 0."""
    usable = _usable(state, (LDTR,))
    return _first(state, usable, lambda s, f: must_be_zero(s, f.rights, AccessRights.S))


@check(F.GUEST_LDTR_AR_BYTES)
def ldtr_is_present(state: EntryState) -> str | None:
    """P (bit 7), LDTR: P must be 1."""
    rights = state[F.GUEST_LDTR_AR_BYTES]
    if rights & (AccessRights.UNUSABLE | AccessRights.P):
        return None
    return wrong(F.GUEST_LDTR_AR_BYTES, rights, "P must be 1")


@check(F.GUEST_LDTR_AR_BYTES)
def ldtr_reserved_bits(state: EntryState) -> str | None:
    """Reserved bits 11:8 and 31:17, LDTR: they must all be 0."""
    reserved = AccessRights.RESERVED
    return _first(state, _usable(state, (LDTR,)), lambda s, f: must_be_zero(s, f.rights, reserved))


@check(F.GUEST_LDTR_AR_BYTES, F.GUEST_LDTR_LIMIT)
def ldtr_granularity(state: EntryState) -> str | None:
    """G (bit 15), LDTR: as for segments."""
    return _first(state, _usable(state, (LDTR,)), _granularity)


SEGMENT_CHECKS = checks_in(globals())
