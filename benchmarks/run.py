"""Every number the project promises, measured beside what it is promised against.

    python -m benchmarks [--check] [--rounds N] [NAME...]

Both sides of a ratio are measured in turn, theirs before and after ours, and the median of the
ratios counts: the machine's mood and speed cancel out. The values shown are medians too. NAME picks
rows by a part of their name; --check makes a ratio over its limit an exit status of 1.
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

if __package__ in (None, ""):  # python benchmarks/run.py
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import baselines, simulated
from benchmarks.guests import LOOPS

FIRST_EXIT = """
from vmxsim import Config, Machine
with Machine(Config(max_exits=1)) as machine:
    machine.load(bytes.fromhex('0fa2f4'))
    machine.run()
"""
ENGINE_ALONE = "import unicorn, capstone"

Measure = Callable[[], float]


class Row(NamedTuple):
    """One promise. ``speed`` rows are rates (ours over theirs, at least); others are costs."""

    name: str
    ours: Measure
    theirs: Measure
    limit: float
    unit: float
    speed: bool = False


def rows() -> list[Row]:
    """All of them, in the order of the promises."""
    found = [
        Row(f"loop: {guest.name}, MIPS", partial(simulated.loop_seconds, guest),
            partial(baselines.loop_seconds, guest), 0.95,
            guest.turns * guest.instructions / 1e6, speed=True)
        for guest in LOOPS
    ]  # fmt: skip
    for stat, factor in ((False, 1.0), (True, 1.5)):
        told = ", --stat" if stat else ""
        found += [
            Row(f"CPUID in the kernel{told}, us", partial(simulated.cpuid_seconds, stat),
                baselines.raw_cpuid_seconds, 2.5 * factor, 1e6),
            Row(f"OUT in the kernel{told}, us", partial(simulated.kernel_out_seconds, stat),
                baselines.out_hook_seconds, 4 * factor, 1e6),
            Row(f"OUT to a userspace device{told}, us",
                partial(simulated.userspace_out_seconds, stat),
                baselines.out_hook_seconds, 12 * factor, 1e6),
        ]  # fmt: skip
    fresh = baselines.FreshPython()
    found.append(
        Row("import, machine, first exit, ms", partial(fresh.seconds, FIRST_EXIT),
            partial(fresh.seconds, ENGINE_ALONE), 2, 1e3)
    )  # fmt: skip
    return found


def measure(row: Row, rounds: int) -> tuple[float, float, float]:
    """Median seconds of both sides, and of ours to the mean of theirs before and after."""
    ours, theirs, ratios = [], [row.theirs()], []
    for _ in range(rounds):
        ours.append(row.ours())
        theirs.append(row.theirs())
        ratios.append(2 * ours[-1] / (theirs[-2] + theirs[-1]))
    return median(ours), median(theirs), median(ratios)


def report(row: Row, ours: float, theirs: float, ratio: float) -> bool:
    """Print one row; whether the promise is kept."""
    if row.speed:
        value, baseline, ratio = row.unit / ours, row.unit / theirs, 1 / ratio
    else:
        value, baseline = row.unit * ours, row.unit * theirs
    kept = ratio >= row.limit if row.speed else ratio <= row.limit
    sign = ">=" if row.speed else "<="
    print(
        f"{row.name:42} {value:10.2f} {baseline:10.2f} {ratio:7.2f} "
        f"{sign} {row.limit:5.2f}  {'ok' if kept else 'OVER'}",
        flush=True,
    )
    return kept


def versions() -> str:
    """What was measured with what."""
    from importlib.metadata import version

    return (
        f"{platform.python_implementation()} {platform.python_version()}, "
        f"unicorn {version('unicorn')}, capstone {version('capstone')}, "
        f"{platform.system()} {platform.machine()}"
    )


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="status 1 when a limit is missed")
    parser.add_argument("--rounds", type=int, default=9, help="median of N (9)")
    parser.add_argument("names", nargs="*", metavar="NAME", help="only rows with this in the name")
    options = parser.parse_args(arguments)
    print(versions())
    print(f"{'':42} {'vmxsim':>10} {'baseline':>10} {'ratio':>7}    limit")
    kept = True
    for row in rows():
        if not options.names or any(name.lower() in row.name.lower() for name in options.names):
            kept &= report(row, *measure(row, options.rounds))
    return int(options.check and not kept)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
