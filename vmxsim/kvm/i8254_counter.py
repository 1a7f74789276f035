"""One counter of the 8254: six modes, binary and BCD, told the number of the current CLK pulse.

Everything is a function of pulses since the count went in, so a counter costs nothing while nobody
looks. Intel 8254 data sheet, "Mode Definitions", "Read Operations".
"""

from __future__ import annotations

from typing import NamedTuple

from vmxsim.clock import NS_PER_S

PIT_HZ = 1_193_182

LSB, MSB, WORD0, WORD1 = 1, 2, 3, 4


def pulse_at(now_ns: int) -> int:
    """The number of the last CLK pulse at that time."""
    return now_ns * PIT_HZ // NS_PER_S


def time_of(pulse: int) -> int:
    """The first nanosecond at or after a CLK pulse."""
    return -(-pulse * NS_PER_S // PIT_HZ)


class PitChannelState(NamedTuple):
    """One counter as struct kvm_pit_channel_state has it (its first field is `count` there)."""

    initial_count: int = 0x10000
    latched_count: int = 0
    count_latched: int = 0
    status_latched: int = 0
    status: int = 0
    read_state: int = WORD0
    write_state: int = WORD0
    write_latch: int = 0
    rw_mode: int = WORD0
    mode: int = 0
    bcd: int = 0
    gate: int = 1
    count_load_time: int = 0


class Counter:
    """One counter. It is told the number of the current CLK pulse and knows no clock."""

    def __init__(self, gate: int) -> None:
        self.start: int | None = None
        self.switch: int | None = None
        self.restore(PitChannelState(gate=gate))
        self.armed, self.start = False, None

    def restore(self, state: PitChannelState) -> None:
        """Count as the state says, from its load time on."""
        (
            self.count, self.latched_count, self.count_latched, self.status_latched, self.status,
            self.read_state, self.write_state, self.write_latch, self.rw_mode, self.mode, self.bcd,
            self.gate, load_time,
        ) = state  # fmt: skip
        self.count = self.reload = self.count or self.modulus
        self.armed = True
        # Pulse at which `count` went in; None while the gate or a missing trigger holds it.
        self.start = pulse_at(load_time) if self.gate or self.mode in (1, 5) else None
        self.held = 0  # pulses counted before it was stopped
        self.switch = None  # pulse at which `reload` takes over, modes 2 and 3

    def save(self) -> PitChannelState:
        """The state KVM_GET_PIT2 gives; a count still waiting for its period is given as loaded."""
        return PitChannelState(
            self.reload, self.latched_count, self.count_latched, self.status_latched, self.status,
            self.read_state, self.write_state, self.write_latch, self.rw_mode, self.mode, self.bcd,
            self.gate, time_of(self.start or 0),
        )  # fmt: skip

    @property
    def modulus(self) -> int:
        """What a written 0 means, and where counting wraps."""
        return 10_000 if self.bcd else 0x10000

    @property
    def periodic(self) -> bool:
        """Rate generator or square wave."""
        return self.mode in (2, 3)

    def control(self, value: int) -> None:
        """A control word for this counter (not a latch command): stop, and wait for a count."""
        self.rw_mode = self.read_state = self.write_state = value >> 4 & 3
        mode = value >> 1 & 7
        self.mode = mode - 4 if mode > 5 else mode
        self.bcd = value & 1
        self.armed, self.start, self.switch = False, None, None
        self.count_latched = self.status_latched = 0

    def write(self, pulse: int, value: int) -> bool:
        """A byte of the count. True when the count is complete."""
        if self.write_state == WORD0:
            self.write_latch, self.write_state = value, WORD1
            if self.mode == 0:  # the first byte stops the counter and lowers OUT
                self.stop(pulse)
                self.armed = False
            return False
        if self.write_state == WORD1:
            self.write_state = WORD0
            value = self.write_latch | value << 8
        elif self.write_state == MSB:
            value <<= 8
        self.load(pulse, value)
        return True

    def load(self, pulse: int, value: int) -> None:
        """A complete count: at once, at the next trigger or at the end of the (half) period."""
        self.reload = (_from_bcd(value) if self.bcd else value) or self.modulus
        running = self.armed and self.start is not None and pulse >= self.start
        self.armed = True
        if self.mode in (1, 5) or (self.periodic and not self.gate):
            return
        if running and self.periodic and self.count > 1:
            self.settle(pulse)
            self.switch = self.switch or self._next_turn(pulse)
            return
        self.count, self.held, self.switch = self.reload, 0, None
        self.start = pulse + 1 if self.gate else None

    def set_gate(self, pulse: int, gate: int) -> None:
        """GATE: a level for modes 0, 2, 3, 4; its rising edge is the trigger of 1, 2, 3, 5."""
        rising, falling = gate and not self.gate, self.gate and not gate
        self.gate = gate
        if falling and self.mode not in (1, 5):
            self.stop(pulse)
        elif rising and self.armed:
            if self.mode in (0, 4):
                self.start = pulse - self.held
            else:
                self.count, self.start, self.switch = self.reload, pulse + 1, None

    def stop(self, pulse: int) -> None:
        """Hold the counting element where it is."""
        self.settle(pulse)
        self.held, self.start, self.switch = self.elapsed(pulse), None, None

    def settle(self, pulse: int) -> None:
        """Let a waiting count take over once its (half) period is finished."""
        if self.switch is None or self.start is None or pulse < self.switch:
            return
        was_high_half = self.mode == 3 and (self.switch - self.start) % self.count
        self.start = self.switch - (self.reload + 1) // 2 if was_high_half else self.switch
        self.count, self.switch = self.reload, None

    def elapsed(self, pulse: int) -> int:
        """Pulses counted since the count went in."""
        return self.held if self.start is None else max(0, pulse - self.start)

    def value(self, pulse: int) -> int:
        """The counting element, as the data lines show it."""
        self.settle(pulse)
        elapsed, count = self.elapsed(pulse), self.count
        if self.mode == 2:
            left = count - elapsed % count
        elif self.mode == 3:  # counts by two, from an even number, once per half period
            high = (count + 1) // 2
            phase = elapsed % count
            left = (count & ~1) - 2 * (phase if phase < high else phase - high)
        else:
            left = count - elapsed
        left %= self.modulus
        return _to_bcd(left) if self.bcd else left

    def out(self, pulse: int) -> int:
        """The OUT line."""
        self.settle(pulse)
        if not self.armed:
            return int(self.mode != 0)
        elapsed, count = self.elapsed(pulse), self.count
        if self.mode == 0:
            return int(elapsed >= count)
        if self.start is None or (self.periodic and count < 2):
            return 1
        if self.mode == 1:
            return int(elapsed >= count)
        if self.mode == 2:
            return int(elapsed % count != count - 1)
        if self.mode == 3:
            return int(elapsed % count < (count + 1) // 2)
        return int(elapsed != count)

    def next_rise(self, pulse: int) -> int | None:
        """The first pulse after this one at which OUT rises by counting."""
        self.settle(pulse)
        if not self.armed or self.start is None:
            return None
        if not self.periodic:
            rise = self.start + self.count + (self.mode in (4, 5))
            return rise if rise > pulse else None
        if self.count < 2:
            return None
        if self.switch is not None:
            high_half = self.mode == 3 and (self.switch - self.start) % self.count
            return self.switch + (self.reload // 2 if high_half else 0)
        return self.start + (self.elapsed(pulse) // self.count + 1) * self.count

    def latch_count(self, pulse: int) -> None:
        """Counter latch command: the first one holds until it is read."""
        if not self.count_latched:
            self.latched_count = self.value(pulse)
            self.count_latched = self.rw_mode

    def latch_status(self, pulse: int) -> None:
        """Read-back of the status: OUT, null count, access, mode, BCD."""
        if not self.status_latched:
            out = self.out(pulse)
            waiting = not self.armed or self.switch is not None
            null = waiting or (self.start is not None and pulse < self.start)
            self.status = out << 7 | null << 6 | self.rw_mode << 4 | self.mode << 1 | self.bcd
            self.status_latched = 1

    def read(self, pulse: int) -> int:
        """Latched status first, then the latched count, else the counting element itself."""
        if self.status_latched:
            self.status_latched = 0
            return self.status
        if self.count_latched:
            if self.count_latched == WORD0:
                self.count_latched = MSB
                return self.latched_count & 0xFF
            high, self.count_latched = self.count_latched == MSB, 0
            return self.latched_count >> 8 if high else self.latched_count & 0xFF
        value, state = self.value(pulse), self.read_state
        if state >= WORD0:
            self.read_state = WORD0 + WORD1 - state
        return value >> 8 if state in (MSB, WORD1) else value & 0xFF

    def _next_turn(self, pulse: int) -> int:
        """The pulse that ends the running period (mode 2) or half period (mode 3)."""
        assert self.start is not None
        periods, phase = divmod(self.elapsed(pulse), self.count)
        begin, high = self.start + periods * self.count, (self.count + 1) // 2
        return begin + (high if self.mode == 3 and phase < high else self.count)


def _from_bcd(value: int) -> int:
    """Four decimal digits. A digit above nine counts as its weight, as the chip decrements it."""
    return sum((value >> 4 * digit & 15) * 10**digit for digit in range(4))


def _to_bcd(value: int) -> int:
    return int(str(value), 16)
