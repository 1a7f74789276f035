"""One name or number explained: what it is, what causes it, what KVM does, what others call it.

Every line is derived from the fact tables of floor 1; this module knows nothing of its own.

    exit reason        30   0x1e   IO_INSTRUCTION   EXIT_REASON_IO_INSTRUCTION   X64IoPortAccess
    VMCS field         0x681e      GUEST_RIP
    instruction error  "error 7"   ENTRY_INVALID_CONTROL_FIELD
    control            HLT_EXITING                  "HLT exiting"
    also               KVM_EXIT_IO  handle_io       0x174  IA32_SYSENTER_CS   #PF  "vector 14"
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from functools import partial
from typing import Final

from vmxsim.arch import capabilities, msrs
from vmxsim.arch.events import Vector, exception_class, has_error_code
from vmxsim.arch.exit_reasons import DIALECTS, FAILED_VMENTRY, NOT_MODELLED, Dialect, ExitReason
from vmxsim.arch.explanations import (
    CAUSES,
    CONTROL_WORDS,
    CONTROLS,
    INSTRUCTION_INFORMATION,
    QUALIFICATIONS,
    Bits,
    field_meaning,
    kvm_handling,
)
from vmxsim.arch.instruction_errors import InstructionError
from vmxsim.arch.msrs import Msr
from vmxsim.arch.vmcs_fields import VmcsField
from vmxsim.errors import InputError
from vmxsim.kvm.uapi import KVM_EXIT_NAMES

LABEL_WIDTH: Final = 16
PREFIXES: Final = ("EXIT_REASON_", "VMX_REASON_", "WHVRUNVPEXITREASON", "#")
NUMBER: Final = re.compile(
    r"(?:(EXIT|REASON|ERROR|FIELD|MSR|VECTOR)_)?(0X[0-9A-F]+|[0-9]+)", re.IGNORECASE
)

Finder = Callable[[], Iterator[str]]
"""What explains one thing, line by line, when it is asked for."""


def explain(what: str) -> str:
    """Explain everything that a name or number stands for; InputError when it is nothing."""
    key = normal(what)
    found = by_number(key) if NUMBER.fullmatch(key) else by_name().get(key, [])
    if not found:
        raise InputError(unknown(what, key))
    return "\n".join("".join(f"{line}\n" for line in finder()) for finder in found)


def normal(what: str) -> str:
    """One spelling: capitals, underscores for blanks and hyphens, without the known prefixes."""
    key = re.sub(r"[\s\-./]+", "_", what.strip().upper())
    for prefix in PREFIXES:
        key = key.removeprefix(prefix)
    return key


def unknown(what: str, key: str) -> str:
    """Say that it is nothing, and what it may have been meant to be."""
    close = get_close_matches(key, by_name(), n=3, cutoff=0.6)
    hint = f"close to it: {', '.join(close)}" if close else (
        'give an exit reason (30, HLT), a VMCS field (GUEST_RIP, 0x681e), "error 7", or a control'
    )  # fmt: skip
    return f"nothing is known of {what!r}: {hint}"


# ---- finding ------------------------------------------------------------------------------------


def by_number(key: str) -> list[Finder]:
    """What a number stands for: in decimal an exit reason, in hexadecimal whatever has it."""
    match = NUMBER.fullmatch(key)
    assert match is not None
    kind, number = match[1], int(match[2], 16 if match[2].startswith("0X") else 10)
    hexadecimal = match[2].startswith("0X")
    exits = {int(reason): reason for reason in ExitReason}
    fields = {int(field): field for field in VmcsField}
    errors = {int(error): error for error in InstructionError}
    found: list[Finder] = []
    basic = number & ~FAILED_VMENTRY
    if kind in (None, "EXIT", "REASON") and basic in exits:
        found.append(partial(about_exit, exits[basic], bool(number & FAILED_VMENTRY)))
    if (kind == "FIELD" or (kind is None and hexadecimal)) and number in fields:
        found.append(partial(about_field, fields[number]))
    if (kind == "MSR" or (kind is None and hexadecimal)) and number in set(Msr):
        found.append(partial(about_msr, number))
    if kind == "ERROR" and number in errors:
        found.append(partial(about_error, errors[number]))
    if kind == "VECTOR" and number in set(Vector):
        found.append(partial(about_vector, number))
    return found


def by_name() -> dict[str, list[Finder]]:
    """Everything that has a name, by its normal spelling; some names are several things."""
    names: dict[str, list[Finder]] = {}
    for name, finder in named():
        finders = names.setdefault(normal(name), [])
        if finder not in finders:
            finders.append(finder)
    return names


def named() -> Iterator[tuple[str, Finder]]:
    """Each name with what explains it."""
    for reason in ExitReason:
        finder = partial(about_exit, reason)
        dialect = DIALECTS.get(reason, Dialect())
        spellings = (reason.name, dialect.hvf, dialect.whpx, kvm_handling(reason).handler)
        yield from ((name, finder) for name in spellings if name)
    for field in VmcsField:
        yield field.name, partial(about_field, field)
    for error in InstructionError:
        yield error.name, partial(about_error, error)
    for group, rows in CONTROLS.items():
        for name, row in rows.items():
            control = partial(about_control, group, name)
            yield name, control
            yield row.wording, control
    for number, name in KVM_EXIT_NAMES.items():
        yield name, partial(about_kvm_exit, number)
    for msr in Msr:
        yield msr.name, partial(about_msr, msr)
    for vector in Vector:
        yield vector.name, partial(about_vector, vector)


# ---- telling ------------------------------------------------------------------------------------


def row(label: str, *values: str) -> Iterator[str]:
    """A label, and values below each other."""
    for value in values:
        yield f"  {label:{LABEL_WIDTH}}{value}"
        label = ""


def about_exit(reason: ExitReason, failed: bool = False) -> Iterator[str]:
    """An exit reason: cause, qualification, KVM's handler, other names."""
    yield f"{reason.name}: VM-exit reason {int(reason)} (0x{reason:x})"
    yield f"  {reason.summary}"
    if failed:
        yield from row("bit 31 is set", "FAILED_VMENTRY: the VM entry failed, the guest never ran")
    yield from row("caused by", reason.when.value)
    yield from row("controls", *(place(*cause) for cause in CAUSES.get(reason.when, ())))
    side = "after the instruction (trap-like)" if reason.trap_like else "not past the instruction"
    yield from row("RIP", side)
    yield from row("qualification", *bit_rows(QUALIFICATIONS.get(reason, ())))
    yield from row("instruction info", *bit_rows(INSTRUCTION_INFORMATION.get(reason, ())))
    handling = kvm_handling(reason)
    yield from row("in KVM", ": ".join(filter(None, handling)))
    if reason in NOT_MODELLED:
        yield from row("here", f"not modelled: {NOT_MODELLED[reason]}")
    yield from row("elsewhere", *other_names(DIALECTS.get(reason, Dialect())))


def bit_rows(bits: tuple[Bits, ...]) -> Iterator[str]:
    """Each bit field with its position."""
    yield from (f"{field.position:>5}  {field.meaning}" for field in bits)


def other_names(dialect: Dialect) -> Iterator[str]:
    """The same exit in other hypervisors' words."""
    if dialect.hvf:
        yield f"VMX_REASON_{dialect.hvf} (macOS Hypervisor framework)"
    if dialect.whpx:
        yield f"WHvRunVpExitReason{dialect.whpx} (Windows Hypervisor Platform)"
    if dialect.kvm_exit:
        yield f"{dialect.kvm_exit} (what KVM's userspace may see of it)"


def place(group: type, name: str) -> str:
    """A control's wording, and the bit it is."""
    value: int = vars(group)[name]
    where = f"bit {value.bit_length() - 1} of {CONTROL_WORDS[group].field.name}"
    return f"{CONTROLS[group][name].wording} ({name}, {where})"


def about_control(group: type, name: str) -> Iterator[str]:
    """A control: its bit, its meaning, whether it may be set here, what it makes exit."""
    word, control = CONTROL_WORDS[group], CONTROLS[group][name]
    value: int = vars(group)[name]
    yield f"{name}: {control.wording}, one of the {word.title}"
    yield f"  When it is 1: {control.meaning}."
    bit = f"{value.bit_length() - 1} of {word.field.name} (0x{word.field:04x})"
    yield from row("bit", bit)
    capability = capabilities.CAPABILITIES.get(word.capability, 0)
    wide = word.capability in (Msr.IA32_VMX_PROCBASED_CTLS3, Msr.IA32_VMX_EXIT_CTLS2)
    allowed = capability if wide else capability >> 32
    verdict = "may be 1" if allowed & value else "must be 0: reported as not allowed"
    if not wide and capability & value:
        verdict = "must be 1"
    yield from row("here", f"{verdict} ({word.capability.name}, 0x{word.capability:x})")
    causes = {when for when, controls in CAUSES.items() if (group, name) in controls}
    exits = [reason for reason in ExitReason if reason.when in causes]
    yield from row("exits it causes", *(f"{reason.name} ({int(reason)})" for reason in exits))


def about_field(field: VmcsField) -> Iterator[str]:
    """A VMCS field: what it holds, and what its encoding says."""
    yield f"{field.name}: VMCS field 0x{field:04x}"
    yield f"  {field_meaning(field)}."
    width = "natural width" if field.width.name == "NATURAL" else f"{field.width.bits} bits"
    area = field.area.name.replace("_", "-").lower()
    access = "read-only" if field.read_only else "read and written"
    half = ", high half" if field.high else ""
    yield from row("encoding", f"{width}{half}, {area} area, index {field.index}; {access}")
    for group, word in CONTROL_WORDS.items():
        if word.field is field:
            bits = sorted((vars(group)[name], name) for name in CONTROLS[group])
            rows = (f"{bit.bit_length() - 1:>5}  {CONTROLS[group][name].wording} ({name})"
                    for bit, name in bits)  # fmt: skip
            yield from row("bits", *rows)


def about_error(error: InstructionError) -> Iterator[str]:
    """A VM-instruction error."""
    yield f"{error.name}: VM-instruction error {int(error)}"
    yield f"  {error.message}."
    yield from row("where", "VM_INSTRUCTION_ERROR (0x4400), after VMfailValid (ZF is 1)")


def about_kvm_exit(number: int) -> Iterator[str]:
    """A KVM_EXIT_* number: which VM exits may end in it."""
    name = KVM_EXIT_NAMES[number]
    yield f"{name}: exit reason {number} of struct kvm_run, not of the processor"
    behind = [reason for reason, dialect in DIALECTS.items() if dialect.kvm_exit == name]
    yield from row("comes from", *(f"{reason.name} ({int(reason)})" for reason in behind))


def about_msr(number: int) -> Iterator[str]:
    """A model-specific register."""
    yield f"{msrs.name(number)}: model-specific register 0x{number:x}"
    if number in capabilities.CAPABILITIES:
        yield from row("value here", f"0x{capabilities.value(number):016x}")


def about_vector(number: int) -> Iterator[str]:
    """An exception."""
    vector = next(vector for vector in Vector if vector == number)
    yield f"#{vector.name}: exception, vector {number}"
    yield from row("error code", "yes" if has_error_code(number) else "no")
    kind = exception_class(number).name.replace("_", " ").lower()
    yield from row("class", f"{kind} (decides what becomes #DF)")
