"""Ctrl-C ends a guest that spins in the main thread."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

SPIN = """
from vmxsim.cpu.cpu import UnicornCpu
cpu = UnicornCpu()
ram = bytearray(65536)
ram[0:2] = b"\\xeb\\xfe"
cpu.memory.map(0xF0000, bytearray(65536))
cpu.memory.map(0, ram)
cpu.rip = 0
from vmxsim.arch.segments import real_mode_segment
cpu.set_segment(1, real_mode_segment(0, code=True))
cpu.keep_interruptible()
print("spinning", flush=True)
try:
    cpu.run()
except KeyboardInterrupt:
    print("interrupted", flush=True)
    cpu.close()
"""


def test_ctrl_c_ends_a_spinning_guest() -> None:
    process = subprocess.Popen([sys.executable, "-c", SPIN], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "spinning\n"
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=5)
    assert (output, process.returncode) == ("interrupted\n", 0)
