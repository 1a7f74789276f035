"""The command line: four words, one error line, and an exit status that means something.

Each command imports what it needs when it is called, so that ``vmxsim explain`` never waits for
the engine to load.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Final, NoReturn

from vmxsim.errors import InputError, VmxsimError

BAD_USAGE: Final = 2
INTERRUPTED: Final = 130
SUFFIXES: Final = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}

EXAMPLES = """\
examples:
  vmxsim run fixtures/programs/hello.lst           output to stdout, the VM exits to stderr
  vmxsim run disk.bin --load-address 0x7c00 --quiet
  vmxsim run kernel.elf --trace exits.txt --stat   every event to a file, the counts to stderr
  vmxsim annotate fixtures/programs/hello.lst      the listing, with its exits filled in
  vmxsim explain 30                                or HLT, GUEST_RIP, 0x681e, "error 7"

exit status of run:
  0 the guest halted for good, or asked for a reset    3 triple fault
  (v << 1) | 1 the guest wrote v to port 0xf4          124 --timeout ran out
  2 bad usage or input, or KVM could not go on         125 --max-exits reached
  128 + n ended by signal n                            130 interrupted by Ctrl-C
"""


class Parser(argparse.ArgumentParser):
    """argparse, with errors on one line in the manner of every other error here."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and where help is; no usage block."""
        text = message.removeprefix("argument ").replace("\n", " ")
        print(f"vmxsim: {text} (try: {self.prog} --help)", file=sys.stderr)
        raise SystemExit(BAD_USAGE)


def number(text: str) -> int:
    """Parse 4096 or 0x1000: what addresses and counts are written as."""
    try:
        value = int(text, 0)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a number: write it as 4096 or 0x1000"
        ) from None
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is negative: give 0 or more")
    return value


def address(text: str) -> int:
    """Parse a guest-physical or linear address: at most 64 bits."""
    value = number(text)
    if value >> 64:
        raise argparse.ArgumentTypeError(f"{text!r} does not fit in 64 bits")
    return value


def count(text: str) -> int:
    """Parse how many exits to allow: at least one."""
    value = number(text)
    if value == 0:
        raise argparse.ArgumentTypeError("0 exits is no run: give 1 or more")
    return value


def size(text: str) -> int:
    """Parse 512K, 64M, 1G, or bytes; whole pages, since memory is mapped in pages."""
    unit = SUFFIXES.get(text[-1:].upper(), 1)
    digits = text[:-1] if unit > 1 else text
    try:
        value = number(digits) * unit
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no memory size: write it as 512K, 64M or 1G"
        ) from None
    if value == 0 or value % 4096:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a whole number of 4096-byte pages: write it as 512K, 64M or 1G"
        )
    return value


def seconds(text: str) -> float:
    """Parse a duration: a positive decimal number of seconds."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no duration: give seconds above 0, such as 10 or 0.5"
        )
    return value


def parser() -> Parser:
    """Every command and option."""
    from vmxsim import __version__

    top = Parser(
        prog="vmxsim",
        description="Run a small x86 guest in user space and see every VM exit it takes.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    top.add_argument("--version", action="version", version=f"vmxsim {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    add_run(commands)
    annotate = commands.add_parser(
        "annotate", help="run a listing and fill in its VM exits", allow_abbrev=False
    )
    annotate.add_argument("program", metavar="PROG.lst", help="a listing: bytes, then assembly")
    irqchip(annotate)
    explain = commands.add_parser(
        "explain",
        help="what an exit reason, VMCS field, control or instruction error is",
        allow_abbrev=False,
    )
    explain.add_argument(
        "what", nargs="+", help='30, IO_INSTRUCTION, GUEST_RIP, 0x681e, "error 7", HLT_EXITING'
    )
    return top


def irqchip(command: argparse.ArgumentParser) -> None:
    """Add the one switch of the machine that changes who answers a HLT."""
    command.add_argument(
        "--irqchip",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="interrupt controllers and timer in the kernel",
    )


def add_run(commands: argparse._SubParsersAction[Parser]) -> None:
    """Add ``vmxsim run`` and its options."""
    run = commands.add_parser("run", help="run a guest", allow_abbrev=False)
    run.add_argument("image", metavar="IMAGE", help="a listing (.lst), an ELF file, or flat bytes")
    run.add_argument("--mode", choices=("real", "protected", "long"), help="the mode it starts in")
    run.add_argument("--load-address", type=address, metavar="N", help="where flat bytes go")
    run.add_argument("--entry", type=address, metavar="N", help="where to start, if not there")
    run.add_argument("--memory", type=size, metavar="64M", help="guest RAM")
    irqchip(run)
    run.add_argument("--clock", choices=("virtual", "host"), default="virtual",
                     help="virtual: repeatable (the default); host: real time")  # fmt: skip
    run.add_argument("--max-exits", type=count, metavar="N", help="stop after N VM exits")
    run.add_argument("--timeout", type=seconds, metavar="S", help="stop after S seconds (124)")
    run.add_argument("--trace", metavar="FILE", help="write every event: ftrace text, or .jsonl")
    run.add_argument("--stat", action="store_true", help="count exits, with the time they took")
    said = run.add_mutually_exclusive_group()
    said.add_argument("-q", "--quiet", action="store_true", help="no list of exits on stderr")
    said.add_argument("-v", "--verbose", action="store_true", help="every exit, as it happens")


def command_annotate(options: argparse.Namespace) -> int:
    """``vmxsim annotate``: print the listing with columns three and four filled in."""
    from vmxsim.tools.listing import annotate
    from vmxsim.vmm.loaders.load import read_file

    data = read_file(options.program)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{options.program}:{line}: not UTF-8 text, so no listing") from None
    told = annotate(text, irqchip=options.irqchip, name=options.program)
    sys.stdout.write(told.rstrip("\n") + "\n")
    return 0


def command_explain(options: argparse.Namespace) -> int:
    """``vmxsim explain``: print what is known of a number or a name."""
    from vmxsim.tools.explain import explain

    sys.stdout.write(explain(" ".join(options.what)))
    return 0


def command_run(options: argparse.Namespace) -> int:
    """``vmxsim run``: run a guest to its end."""
    from vmxsim.tools.cli_run import run

    return run(options)


COMMANDS: Final = {"run": command_run, "annotate": command_annotate, "explain": command_explain}


def main(arguments: Sequence[str]) -> int:
    """Run one command and return its exit status; nothing it was given makes a traceback."""
    replace_closed_streams()
    try:
        try:
            options = parser().parse_args(arguments)
            status = COMMANDS[options.command](options)
        finally:
            sys.stdout.flush()
    except SystemExit as left:
        return left.code if isinstance(left.code, int) else BAD_USAGE
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        silence(sys.stdout.fileno())
        return complain("nobody reads standard output any more: the run ended with its reader")
    except VmxsimError as error:
        return complain(str(error))
    except OSError as error:
        return complain(f"{error.filename or 'standard output'}: {error.strerror}")
    return status


def replace_closed_streams() -> None:
    """Let output that the caller closed (``>&-``) go nowhere, as other programs do."""
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (until the process ends)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115


def complain(message: str) -> int:
    """One line on stderr, and the status of bad input."""
    try:
        print(f"vmxsim: {' '.join(message.split())}", file=sys.stderr)
    except OSError:
        silence(sys.stderr.fileno())
    return BAD_USAGE


def silence(descriptor: int) -> None:
    """Send what is still buffered for a closed pipe nowhere, or Python complains at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
