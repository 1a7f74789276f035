"""``vmxsim run``: the guest's output on stdout, everything about the run on stderr.

Nobody's terminal is left changed: the keyboard's mode is put back however the run ends.
"""

from __future__ import annotations

import argparse
import signal
import sys
from contextlib import ExitStack
from os import PathLike
from types import FrameType
from typing import Final, NoReturn

from vmxsim.clock import Clock, HostClock, VirtualClock
from vmxsim.errors import InputError
from vmxsim.probes import Probes
from vmxsim.tools.keyboard import Keyboard
from vmxsim.tools.stat import Stat
from vmxsim.tools.trace import FirstExits, TextTrace, TraceFile
from vmxsim.vmm.config import ClockKind, Config, Mode
from vmxsim.vmm.machine import Machine, RunResult
from vmxsim.vmm.runstate import Stop

SHOWN_EXITS: Final = 40
"""So many exits are listed before the counts; -v lists all, --trace writes all to a file."""

SILENT: Final = frozenset({Stop.HALTED, Stop.RESET, Stop.SHUTDOWN, Stop.DEBUG_EXIT})
"""Endings that a guest means: with --quiet the status alone tells of them."""


def config_of(options: argparse.Namespace) -> Config:
    """What the command line asks of the machine."""
    return Config(
        memory=options.memory,
        mode=None if options.mode is None else Mode(options.mode),
        irqchip=options.irqchip,
        clock=ClockKind(options.clock),
        load_address=options.load_address,
        entry=options.entry,
        max_exits=options.max_exits,
        timeout_s=options.timeout,
        serial=write_out,
        debugcon=write_out,
    )


def end_in_order(cleanup: ExitStack) -> None:
    """Have SIGTERM and SIGHUP end the run as Ctrl-C does, not where it stands: 128 + the signal.

    The terminal is put back, the trace is written to its end, the counts are told. A signal that
    the caller ignores (nohup) stays ignored.
    """

    def end(number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, end)
            cleanup.callback(signal.signal, number, signal.SIG_DFL)


def file_named(name: str) -> str | PathLike[str]:
    """The name as Machine.load takes it for a file's, even with a line break in it."""
    if not name:
        raise InputError("the image has no name: give a file")
    if "\n" not in name:
        return name
    from pathlib import Path

    return Path(name)


def write_out(data: bytes) -> None:
    """A device's output, out at once."""
    out = sys.stdout.buffer
    out.write(data)
    out.flush()


class Watchers:
    """The instruments that the command line asks for, and what they have to say at the end."""

    def __init__(self, options: argparse.Namespace, probes: Probes, cleanup: ExitStack) -> None:
        self.first: FirstExits | None = None
        self.stat: Stat | None = None
        if options.trace is not None:
            file = TraceFile(options.trace)
            cleanup.callback(file.close)
            probes.add(file.instrument())
        if options.verbose:
            probes.add(TextTrace(sys.stderr.write))
        elif not options.quiet:
            self.first = FirstExits(SHOWN_EXITS)
            probes.add(self.first)
        if options.stat:
            self.stat = Stat()
            probes.add(self.stat)

    def report(self) -> None:
        """Write what was collected to stderr."""
        if self.first is not None:
            sys.stderr.write(self.first.report())
        if self.stat is not None:
            sys.stderr.write(self.stat.report())


def run(options: argparse.Namespace) -> int:
    """Run a guest to its end and return the exit status that stands for it."""
    config = config_of(options)
    clock: Clock = VirtualClock() if config.clock is ClockKind.VIRTUAL else HostClock()
    probes = Probes()
    with ExitStack() as cleanup:
        end_in_order(cleanup)
        watchers = Watchers(options, probes, cleanup)
        machine = cleanup.enter_context(Machine(config, clock=clock, probes=probes))
        machine.load(file_named(options.image))
        cleanup.enter_context(Keyboard(machine.serial_input))
        try:
            result = machine.run()
        finally:
            sys.stdout.flush()
            watchers.report()
    tell(result, options.quiet)
    return result.status


def tell(result: RunResult, quiet: bool) -> None:
    """How it ended, on stderr: always when something went wrong, else unless --quiet."""
    if not quiet or result.stop not in SILENT:
        print(f"vmxsim: {result}", file=sys.stderr)
    if result.stop is Stop.TRIPLE_FAULT:
        sys.stderr.write(result.registers)
