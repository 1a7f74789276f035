"""The structures are the header's, to the byte; the records say the same as the bytes."""

from __future__ import annotations

import ctypes
import re
import struct
from pathlib import Path

import pytest

from vmxsim.kvm import uapi
from vmxsim.kvm.uapi import Direction, KvmRun


@pytest.mark.parametrize(
    ("structure", "size"),
    [
        (uapi.KvmRun, 2352),
        (uapi.KvmRegs, 144),
        (uapi.KvmSegment, 24),
        (uapi.KvmDtable, 16),
        (uapi.KvmSregs, 312),
        (uapi.KvmFpu, 416),
        (uapi.KvmMsrEntry, 16),
        (uapi.KvmMsrs, 8),
        (uapi.KvmCpuidEntry2, 40),
        (uapi.KvmCpuid2, 8),
        (uapi.KvmUserspaceMemoryRegion, 32),
        (uapi.KvmIrqLevel, 8),
        (uapi.KvmInterrupt, 4),
        (uapi.KvmMpState, 4),
        (uapi.KvmPitConfig, 64),
        (uapi.KvmTranslation, 24),
        (uapi.KvmVcpuEvents, 64),
        (uapi.KvmDebugregs, 128),
        (uapi.KvmXcr, 16),
        (uapi.KvmXcrs, 392),
    ],
)
def test_sizes(structure: type[ctypes.Structure], size: int) -> None:
    assert ctypes.sizeof(structure) == size


@pytest.mark.parametrize(
    ("field", "offset"),
    [
        ("request_interrupt_window", 0),
        ("immediate_exit", 1),
        ("exit_reason", 8),
        ("ready_for_interrupt_injection", 12),
        ("if_flag", 13),
        ("flags", 14),
        ("cr8", 16),
        ("apic_base", 24),
        ("io", 32),
        ("mmio", 32),
        ("padding", 32),
        ("kvm_valid_regs", 288),
        ("kvm_dirty_regs", 296),
        ("s", 304),
    ],
)
def test_kvm_run_offsets(field: str, offset: int) -> None:
    assert getattr(KvmRun, field).offset == offset


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("KVM_GET_API_VERSION", 0xAE00),
        ("KVM_CREATE_VM", 0xAE01),
        ("KVM_CHECK_EXTENSION", 0xAE03),
        ("KVM_GET_VCPU_MMAP_SIZE", 0xAE04),
        ("KVM_CREATE_VCPU", 0xAE41),
        ("KVM_SET_USER_MEMORY_REGION", 0x4020AE46),
        ("KVM_RUN", 0xAE80),
        ("KVM_GET_REGS", 0x8090AE81),
        ("KVM_SET_REGS", 0x4090AE82),
        ("KVM_GET_SREGS", 0x8138AE83),
        ("KVM_SET_SREGS", 0x4138AE84),
        ("KVM_GET_SUPPORTED_CPUID", 0xC008AE05),
        ("KVM_INTERRUPT", 0x4004AE86),
    ],
)
def test_ioctl_numbers(name: str, number: int) -> None:
    assert getattr(uapi, name) == number


HEADER = Path("/usr/include/linux/kvm.h")


@pytest.mark.skipif(not HEADER.exists(), reason="no kernel headers on this machine")
def test_plain_numbers_agree_with_the_header() -> None:
    text = HEADER.read_text() + "".join(
        path.read_text() for path in Path("/usr/include").glob("*/asm/kvm.h")
    )
    defined = {
        name: int(number, 0)
        for name, number in re.findall(
            r"#\s*define\s+(KVM_(?:EXIT|CAP|MP_STATE|INTERNAL_ERROR|VCPUEVENT)\w+)\s+(0x\w+|\d+)\b",
            text,
        )
    }
    ours = {name: getattr(uapi, name) for name in dir(uapi) if name in defined}
    assert len(ours) > 90
    assert ours == {name: defined[name] for name in ours}


def test_every_exit_code_has_its_name() -> None:
    assert sorted(uapi.KVM_EXIT_NAMES) == list(range(38))
    assert uapi.KVM_EXIT_NAMES[2] == "KVM_EXIT_IO"


@pytest.fixture
def run() -> KvmRun:
    return KvmRun.over(bytearray(uapi.VCPU_MMAP_SIZE))


def test_an_out_is_a_record_with_its_bytes(run: KvmRun) -> None:
    run.exit_reason = uapi.KVM_EXIT_IO
    uapi.IO_EXIT.pack_into(run.shared, uapi.EXIT_OFFSET, 1, 2, 0x3F8, 2, uapi.PIO_DATA_OFFSET)
    run.shared[4096:4100] = b"abcd"
    assert run.exit == uapi.KvmExitIo(Direction.OUT, 0x3F8, 2, 2, b"abcd")
    assert (run.io.direction, run.io.size, run.io.port, run.io.count) == (1, 2, 0x3F8, 2)


def test_an_in_is_answered_in_the_pio_page(run: KvmRun) -> None:
    run.exit_reason = uapi.KVM_EXIT_IO
    uapi.IO_EXIT.pack_into(run.shared, uapi.EXIT_OFFSET, 0, 1, 0x60, 4, uapi.PIO_DATA_OFFSET)
    assert run.exit == uapi.KvmExitIo(Direction.IN, 0x60, 1, 4, b"")
    run.answer(b"wxyz")
    assert bytes(run.shared[4096:4101]) == b"wxyz\0"
    with pytest.raises(ValueError, match="asked for 4 bytes, the answer has 1"):
        run.answer(b"w")


def test_mmio_reads_are_answered_in_place_and_writes_carry_their_bytes(run: KvmRun) -> None:
    run.exit_reason = uapi.KVM_EXIT_MMIO
    uapi.MMIO_EXIT.pack_into(run.shared, uapi.EXIT_OFFSET, 0xFEE000B0, b"", 4, 0)
    assert run.exit == uapi.KvmExitMmio(0xFEE000B0, 4, None)
    run.answer(b"\x01\x02\x03\x04")
    assert bytes(run.mmio.data[:]) == b"\x01\x02\x03\x04\0\0\0\0"
    run.mmio.is_write = 1
    assert run.exit == uapi.KvmExitMmio(0xFEE000B0, 4, b"\x01\x02\x03\x04")


@pytest.mark.parametrize(
    ("code", "fields", "record"),
    [
        (uapi.KVM_EXIT_UNKNOWN, struct.pack("<Q", 77), uapi.KvmExitUnknown(77)),
        (uapi.KVM_EXIT_HLT, b"", uapi.KvmExitHlt()),
        (uapi.KVM_EXIT_SHUTDOWN, b"", uapi.KvmExitShutdown()),
        (uapi.KVM_EXIT_INTR, b"", uapi.KvmExitIntr()),
        (uapi.KVM_EXIT_IRQ_WINDOW_OPEN, b"", uapi.KvmExitIrqWindowOpen()),
        (
            uapi.KVM_EXIT_FAIL_ENTRY,
            struct.pack("<QI", 0x80000021, 0),
            uapi.KvmExitFailEntry(0x80000021, 0),
        ),
        (uapi.KVM_EXIT_EXCEPTION, struct.pack("<II", 14, 2), uapi.KvmExitException(14, 2)),
        (
            uapi.KVM_EXIT_INTERNAL_ERROR,
            struct.pack("<IIQB3s", 1, 4, 1, 3, b"\x0f\x0b\x90"),
            uapi.KvmExitInternalError(1, (1, 0x900B0F03, 0, 0), b"\x0f\x0b\x90"),
        ),
        (
            uapi.KVM_EXIT_INTERNAL_ERROR,
            struct.pack("<IIQ", 4, 1, 55),
            uapi.KvmExitInternalError(4, (55,)),
        ),
        (uapi.KVM_EXIT_DEBUG, struct.pack("<IIQQQ", 1, 0, 2, 3, 4), uapi.KvmExitDebug(1, 2, 3, 4)),
        (uapi.KVM_EXIT_SYSTEM_EVENT, struct.pack("<I", 2), uapi.KvmExitSystemEvent(2)),
        (uapi.KVM_EXIT_NOTIFY, b"", uapi.KvmExitOther(37)),
    ],
)
def test_each_exit_is_a_record(run: KvmRun, code: int, fields: bytes, record: uapi.KvmExit) -> None:
    run.exit_reason = code
    run.shared[uapi.EXIT_OFFSET : uapi.EXIT_OFFSET + len(fields)] = fields
    assert run.exit == record
    assert type(run.exit) is type(record)


def test_an_exit_that_asks_nothing_takes_no_answer(run: KvmRun) -> None:
    run.exit_reason = uapi.KVM_EXIT_HLT
    with pytest.raises(ValueError, match="KVM_EXIT_HLT takes no answer"):
        run.answer(b"")
