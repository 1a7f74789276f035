"""``vmxsim run`` as a user meets it: a process with a status, two streams, and a keyboard."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ROOT / "fixtures/programs"
HELLO = str(PROGRAMS / "hello.lst")
TIMER = str(PROGRAMS / "timer.lst")

LOOP = "eb fe"
ECHO = "fa ba fd 03 ec a8 01 74 fb ba f8 03 ec 3c 71 74 03 ee eb ed f4"
"""Sends back what it receives, until it receives a q."""
TRIPLE_FAULT = "0f 01 1e 00 00 0f 0b"

FULL = pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
POSIX = pytest.mark.skipif(os.name != "posix", reason="signals and terminals of POSIX")


def command(*words: str) -> list[str]:
    return [sys.executable, "-W", "error", "-m", "vmxsim", "run", *words]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def run(*words: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        command(*words), input=stdin, capture_output=True, check=False, timeout=60,
        env=environment(),
    )  # fmt: skip


@pytest.fixture
def guest(tmp_path: Path):  # noqa: ANN201
    """Writes a flat image and returns its name."""

    def write(code: str) -> str:
        path = tmp_path / "guest.bin"
        path.write_bytes(bytes.fromhex(code))
        return str(path)

    return write


# ---- what is seen -------------------------------------------------------------------------------


def test_output_on_stdout_and_every_exit_on_stderr() -> None:
    done = run(HELLO)
    assert (done.stdout, done.returncode) == (b"Hello, world!\n", 0)
    told = done.stderr.decode()
    assert told.count("kvm_exit: vcpu 0 reason IO_INSTRUCTION") == 14
    assert told.count("kvm_pio: pio_write at 0x3f8 size 1 count 1 val 0x48\n") == 1
    assert told.count("kvm_userspace_exit: reason KVM_EXIT_IO (2)\n") == 14
    assert "15 VM exits: 14 IO_INSTRUCTION, 1 HLT\n" in told
    assert told.endswith("vmxsim: halted with interrupts off\n")


def test_quiet_says_nothing_but_the_output() -> None:
    done = run(HELLO, "--quiet")
    assert (done.stdout, done.stderr, done.returncode) == (b"Hello, world!\n", b"", 0)


def test_a_long_run_lists_its_first_exits_and_counts_the_rest() -> None:
    told = run(TIMER).stderr.decode()
    assert told.count("kvm_exit:") == 40
    assert " more (-v shows every one)\n" in told


def test_verbose_lists_every_one() -> None:
    told = run(TIMER, "-v").stderr.decode()
    assert told.count("kvm_exit:") > 40
    assert "kvm_entry: vcpu 0, rip 0x7c00" in told


def test_stat_counts_by_reason_and_port() -> None:
    told = run(HELLO, "--stat", "-q").stderr.decode()
    rows = [line.split() for line in told.splitlines()]
    io = next(row for row in rows if row[:1] == ["IO_INSTRUCTION"])
    assert (io[1], io[-2:]) == ("14", ["0", "14"])
    port = next(row for row in rows if row[:2] == ["POUT", "0x3f8"])
    assert (port[2], port[-2:]) == ("14", ["0", "14"])
    assert "Total Samples:15, Total events handled time:" in told


@pytest.mark.parametrize("name", ["t.txt", "t.jsonl"])
@pytest.mark.parametrize("program", [HELLO, TIMER])
def test_a_trace_repeats_itself_byte_for_byte(tmp_path: Path, program: str, name: str) -> None:
    first, second = tmp_path / f"1{name}", tmp_path / f"2{name}"
    for path in (first, second):
        assert run(program, "-q", "--trace", str(path)).returncode == 0
    assert first.read_bytes() == second.read_bytes()
    assert b"kvm_exit" in first.read_bytes()


# ---- how it ends --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "status", "message"),
    [
        ("fa f4", 0, "halted with interrupts off"),
        ("b0 fe e6 64", 0, "asked for a reset"),
        ("b0 00 e6 f4", 1, "wrote to the debug exit port: value 0x0"),
        ("b0 03 e6 f4", 7, "wrote to the debug exit port: value 0x3"),
        (TRIPLE_FAULT, 3, "triple fault"),
    ],
)
def test_the_guests_own_end_is_the_status(guest, code, status, message) -> None:  # noqa: ANN001
    done = run(guest(code))
    assert done.returncode == status
    assert f"vmxsim: {message}" in done.stderr.decode()


def test_a_triple_fault_dumps_the_registers_even_when_quiet(guest) -> None:  # noqa: ANN001
    done = run(guest(TRIPLE_FAULT), "-q")
    told = done.stderr.decode()
    assert done.returncode == 3
    assert told.startswith("vmxsim: triple fault")
    assert "EIP=00007c05" in told
    assert "CR0=" in told


def test_a_timeout_is_124(guest) -> None:  # noqa: ANN001
    started = time.monotonic()
    done = run(guest(LOOP), "--timeout", "0.3", "-q")
    assert done.returncode == 124
    assert done.stderr == b"vmxsim: out of time: after 0.3 s\n"
    assert time.monotonic() - started < 20


def test_max_exits_is_125(guest) -> None:  # noqa: ANN001
    done = run(guest("e6 80 eb fc"), "--max-exits", "10")
    assert done.returncode == 125
    assert "10 VM exits: 10 IO_INSTRUCTION\n" in done.stderr.decode()


@POSIX
def test_ctrl_c_is_130_and_quick(guest) -> None:  # noqa: ANN001
    words = command(guest("b0 21 e6 e9 eb fe"))
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
        env=environment(),
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.read(1) == b"!"
    process.send_signal(signal.SIGINT)
    started = time.monotonic()
    _, told = process.communicate(timeout=30)
    assert process.returncode == 130
    assert time.monotonic() - started < 5
    assert b"Traceback" not in told
    assert b"1 IO_INSTRUCTION\n" in told


@POSIX
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_sigterm_and_sighup_end_a_run_in_order(guest, tmp_path: Path, number: int) -> None:  # noqa: ANN001
    trace = tmp_path / "trace.txt"
    process = subprocess.Popen(
        command(guest("b0 21 e6 e9 eb fe"), "--trace", str(trace)), stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, env=environment(),
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.read(1) == b"!"
    process.send_signal(number)
    _, told = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert b"1 IO_INSTRUCTION\n" in told
    assert "pio_write at 0xe9" in trace.read_text()


# ---- input --------------------------------------------------------------------------------------


def test_a_pipe_is_typed_on_the_serial_line(guest) -> None:  # noqa: ANN001
    done = run(guest(ECHO), "-q", "--timeout", "30", stdin=b"typed\x00\xffq")
    assert (done.stdout, done.returncode) == (b"typed\x00\xff", 0)


def test_a_file_is_typed_and_the_run_repeats(guest, tmp_path: Path) -> None:  # noqa: ANN001
    keys, image = tmp_path / "keys", guest(ECHO)
    keys.write_bytes(b"from a file q")
    traces = []
    for name in ("1", "2"):
        trace = tmp_path / name
        with keys.open("rb") as stdin:
            done = subprocess.run(
                command(image, "-q", "--timeout", "30", "--trace", str(trace)), stdin=stdin,
                capture_output=True, check=False, env=environment(),
            )  # fmt: skip
        assert (done.stdout, done.returncode) == (b"from a file ", 0)
        traces.append(trace.read_bytes())
    assert traces[0] == traces[1]


def test_the_end_of_input_does_no_harm(guest) -> None:  # noqa: ANN001
    assert run(guest("b9 ff ff e2 fe fa f4"), "-q", stdin=b"").returncode == 0


@POSIX
def test_keys_of_a_terminal_reach_the_guest_and_the_terminal_is_put_back(
    guest,  # noqa: ANN001
) -> None:
    import pty
    import termios

    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)
    process = subprocess.Popen(
        command(guest(ECHO), "-q", "--timeout", "30"), stdin=slave, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env=environment(), start_new_session=True,
        preexec_fn=lambda: take_terminal(slave),
    )  # fmt: skip
    os.write(master, b"k\r")
    assert process.stdout is not None
    assert process.stdout.read(2) in (b"k\r", b"k\n")
    os.write(master, b"q")
    out, told = process.communicate(timeout=30)
    assert (process.returncode, out, told) == (0, b"", b"")
    assert termios.tcgetattr(slave) == before
    os.close(master)
    os.close(slave)


def take_terminal(slave: int) -> None:
    """Make the terminal the controlling one, as a shell would have."""
    import fcntl
    import termios

    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)


# ---- what goes wrong ----------------------------------------------------------------------------


def complaint(done: subprocess.CompletedProcess[bytes]) -> str:
    """The one line of a run that was refused."""
    assert done.returncode == 2
    told = done.stderr.decode()
    assert told.count("\n") == 1, told
    assert told.startswith("vmxsim: ")
    return told


def test_a_missing_image(tmp_path: Path) -> None:
    assert "nowhere.bin: No such file" in complaint(run(str(tmp_path / "nowhere.bin")))


def test_an_empty_image(guest) -> None:  # noqa: ANN001
    assert "guest.bin: the file is empty" in complaint(run(guest("")))


def test_a_directory(tmp_path: Path) -> None:
    assert "Is a directory" in complaint(run(str(tmp_path)))


def test_an_image_larger_than_memory(tmp_path: Path) -> None:
    path = tmp_path / "large.bin"
    path.write_bytes(bytes(128 << 10))
    assert "does not fit into 0x10000 bytes" in complaint(run(str(path), "--memory", "64K"))


def test_an_entry_where_nothing_is_loaded(guest) -> None:  # noqa: ANN001
    assert "nothing is loaded at the entry 0x9000" in complaint(
        run(guest("f4"), "--entry", "0x9000")
    )


def test_an_unreadable_line_is_named_by_its_number(tmp_path: Path) -> None:
    path = tmp_path / "bad.lst"
    path.write_text("  fa  cli\n  zz  what\n")
    assert "bad.lst:2:" in complaint(run(str(path)))


def test_more_memory_than_there_can_be(guest) -> None:  # noqa: ANN001
    complaint(run(guest("f4"), "--memory", "99999999G"))


@pytest.mark.parametrize("name", ["nowhere/trace", "."])
def test_a_trace_that_cannot_be_written(tmp_path: Path, name: str) -> None:
    told = complaint(run(HELLO, "-q", "--trace", str(tmp_path / name)))
    assert "cannot write the trace to" in told


@FULL
def test_a_trace_on_a_full_disk() -> None:
    done = run(HELLO, "-q", "--trace", "/dev/full")
    assert "cannot write the trace to /dev/full: No space left" in complaint(done)


@FULL
def test_a_full_disk_under_the_output() -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            command(HELLO, "-q"), stdout=full, stderr=subprocess.PIPE, check=False,
            stdin=subprocess.DEVNULL, env=environment(),
        )  # fmt: skip
    assert "standard output: No space left" in complaint(done)


@POSIX
def test_nobody_reads_the_output() -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as closed:
        done = subprocess.run(
            command(HELLO, "-q"), stdout=closed, stderr=subprocess.PIPE, check=False,
            stdin=subprocess.DEVNULL, env=environment(),
        )  # fmt: skip
    assert "nobody reads standard output any more" in complaint(done)


@POSIX
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-"])
def test_a_closed_stream_does_no_harm(closed: str) -> None:
    words = " ".join(f"'{word}'" for word in command(HELLO))
    done = subprocess.run(
        ["sh", "-c", f"{words} {closed}"], capture_output=True, check=False, env=environment()
    )
    assert done.returncode == 0
    assert b"Traceback" not in done.stderr


def test_a_name_with_a_line_break_is_a_files_name(tmp_path: Path) -> None:
    path = tmp_path / "two\nlines.bin"
    path.write_bytes(b"\xfa\xf4")
    assert run(str(path), "-q").returncode == 0
    assert "No such file" in complaint(run(str(tmp_path / "no\nfile")))
    assert "the image has no name" in complaint(run(""))


def test_a_guest_that_jumps_into_nothing_ends_by_itself(guest) -> None:  # noqa: ANN001
    done = run(guest("ea 00 00 00 f0"), "--memory", "64K", "--timeout", "20", "-q")
    assert done.returncode == 2
    assert "KVM could not go on: emulation failure" in done.stderr.decode()
    assert b"Traceback" not in done.stderr


# ---- annotate -----------------------------------------------------------------------------------


def annotate(*words: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "vmxsim", "annotate", *words],
        capture_output=True, check=False, timeout=60, env=environment(),
    )  # fmt: skip


def test_annotate_fills_in_both_columns() -> None:
    done = annotate(HELLO)
    told = done.stdout.decode()
    assert (done.returncode, done.stderr) == (0, b"")
    assert "| IO_INSTRUCTION out 0x3f8 <- 48 65 6c 6c .. x14 | KVM_EXIT_IO out 0x3f8 <- 48" in told
    assert told.count("\n") == Path(HELLO).read_text().count("\n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"  zz  what\n", "prog.lst:1: cannot read"),
        (b"  fa  cli\n\xff\n", "prog.lst:2: not UTF-8 text"),
        (b"; nothing\n", "no line with bytes in it"),
        (b"", "the file is empty"),
    ],
)
def test_annotate_names_the_line_it_cannot_read(
    tmp_path: Path, text: bytes, message: str
) -> None:
    path = tmp_path / "prog.lst"
    path.write_bytes(text)
    assert message in complaint(annotate(str(path)))


@POSIX
def test_a_run_in_the_background_leaves_the_terminal_alone(guest) -> None:  # noqa: ANN001
    import pty

    master, slave = pty.openpty()
    process = subprocess.Popen(
        command(guest("b9 ff ff e2 fe fa f4"), "-q"), stdin=slave, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env=environment(), start_new_session=True,
    )  # fmt: skip
    out, told = process.communicate(timeout=30)
    assert (process.returncode, out, told) == (0, b"", b"")
    os.close(master)
    os.close(slave)
