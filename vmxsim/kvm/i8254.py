"""The 8254 interval timer and the speaker port, counted in whole CLK pulses since power-on.

Linux: arch/x86/kvm/i8254.c. All three counters share one CLK whose pulse k comes exactly at
k / 1193182 s, so nothing drifts; a count is loaded by the first pulse after its last byte, as the
data sheet says. IRQ 0 is pulsed (1, then 0) whenever OUT of counter 0 rises at a terminal count:
modes 0, 2, 3 and 4. Unlike Linux, mode 1 on counter 0 does nothing (its gate is tied high and never
rises), a new count in mode 2 or 3 waits for the end of the (half) period, and no shortest period is
enforced; the illegal count 1 in modes 2 and 3 gives no pulses.

Missed ticks. Without `reinject` a tick that finds the last one unserved is lost (the interrupt
controller coalesces it). With it, Linux's default, ticks are counted, the next one is given only
after the guest ended the last one (`acked`), and the guest gets every one of them; unmasking the
line (`unmasked`) or loading a count forgets the backlog.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from vmxsim.clock import Alarm, Clock
from vmxsim.kvm.i8254_counter import Counter, PitChannelState, pulse_at, time_of

REFRESH_PULSES = 18
"""Counter 1 of a PC refreshes memory every 18 pulses (15 us); port 0x61 shows it."""

FLAG_HPET_LEGACY = 1
FLAG_SPEAKER_DATA_ON = 2


class PitState(NamedTuple):
    """The chip as struct kvm_pit_state2 has it."""

    channels: tuple[PitChannelState, PitChannelState, PitChannelState]
    flags: int = 0


class I8254:
    """Counters at offsets 0 to 2, the control word at 3. Counter 0 drives IRQ 0.

    Call it from one thread at a time. With `reinject`, wire acked() to the end of interrupt 0
    (I8259Pair.on_eoi) and unmasked() to its mask; without those calls only one tick would come.
    """

    def __init__(self, clock: Clock, set_irq0: Callable[[int], object]) -> None:
        self.clock, self.set_irq0 = clock, set_irq0
        self.counters = (Counter(1), Counter(1), Counter(0))
        self.flags = 0
        self.reinject = False
        self.pending = 0
        self._served = True
        self._alarm: Alarm | None = None
        self._due = 0

    @property
    def pulse(self) -> int:
        """The number of the last CLK pulse."""
        return pulse_at(self.clock.now())

    def read(self, offset: int, size: int) -> int:
        """A byte of a counter. The control word cannot be read: the bus floats high."""
        return 0xFF if offset & 3 == 3 else self.counters[offset & 3].read(self.pulse)

    def write(self, offset: int, size: int, value: int) -> None:
        """A byte of a count, a control word, a latch or a read-back command."""
        offset, value, pulse = offset & 3, value & 0xFF, self.pulse
        if offset < 3:
            if offset == 0:
                self._catch_up(pulse)
            if self.counters[offset].write(pulse, value) and offset == 0:
                self.unmasked()
            self._arm(pulse)
        elif value >> 6 == 3:
            self._read_back(pulse, value)
        elif value >> 4 & 3 == 0:
            self.counters[value >> 6].latch_count(pulse)
        else:
            self._catch_up(pulse)
            self.counters[value >> 6].control(value)
            self._arm(pulse)

    def set_gate(self, number: int, gate: int) -> None:
        """Drive a counter's GATE; on a PC only counter 2's is wired, to port 0x61."""
        self.counters[number].set_gate(self.pulse, gate)

    def out(self, number: int) -> int:
        """A counter's OUT line."""
        return self.counters[number].out(self.pulse)

    def acked(self) -> None:
        """The guest ended an IRQ 0: with reinject, a missed tick follows."""
        if not self.reinject:
            return
        self._served = True
        if self.pending:
            self.pending -= 1
        if self.pending:
            self._tick()

    def unmasked(self) -> None:
        """IRQ 0 was unmasked: no backlog, the next tick is given."""
        self.pending, self._served = 0, True

    def reset(self) -> None:
        """Power-on: no counter runs until it is programmed."""
        self.counters = (Counter(1), Counter(1), Counter(0))
        self.flags = 0
        self.unmasked()
        self._arm(self.pulse)

    def get_state(self) -> PitState:
        """The chip as KVM_GET_PIT2 gives it."""
        first, second, third = self.counters
        return PitState((first.save(), second.save(), third.save()), self.flags)

    def set_state(self, state: PitState) -> None:
        """Put the chip back; counting goes on from each count_load_time (Linux starts over)."""
        for counter, channel in zip(self.counters, state.channels, strict=True):
            counter.restore(channel)
        self.flags = state.flags
        self.unmasked()
        self._arm(self.pulse)

    def _read_back(self, pulse: int, value: int) -> None:
        for number, counter in enumerate(self.counters):
            if value & 2 << number:
                if not value & 0x20:
                    counter.latch_count(pulse)
                if not value & 0x10:
                    counter.latch_status(pulse)

    def _arm(self, pulse: int) -> None:
        rise = self.counters[0].next_rise(pulse)
        if self._alarm is not None:
            if rise == self._due:
                return
            self._alarm.cancel()
        self._alarm = None
        if rise is not None:
            self._due = rise
            self._alarm = self.clock.call_at(time_of(rise), self._expired)

    def _catch_up(self, pulse: int) -> None:
        """Give ticks that are due before the counter is changed under them."""
        if self._alarm is not None and self._due <= pulse:
            self._alarm.cancel()
            self._expired()

    def _expired(self) -> None:
        self._alarm = None
        pulse, counter = self.pulse, self.counters[0]
        counter.settle(pulse)
        ticks = 1 + (pulse - self._due) // counter.count if counter.periodic else 1
        self._arm(pulse)
        if self.reinject:
            self.pending += ticks
        self._tick()

    def _tick(self) -> None:
        if self.reinject:
            if not self._served:
                return
            self._served = False
        self.set_irq0(1)
        self.set_irq0(0)


class SpeakerPort:
    """Port 0x61: gate 2 (bit 0), speaker data (1), refresh toggle (4) and OUT 2 (5)."""

    def __init__(self, pit: I8254) -> None:
        self.pit = pit

    def read(self, offset: int, size: int) -> int:
        """Bits 2, 3 (NMI enables), 6 and 7 (NMI causes) read zero, as in Linux."""
        pit, pulse = self.pit, self.pit.pulse
        gate, out = pit.counters[2].gate, pit.counters[2].out(pulse)
        speaker = pit.flags & FLAG_SPEAKER_DATA_ON
        return gate | speaker | (pulse // REFRESH_PULSES & 1) << 4 | out << 5

    def write(self, offset: int, size: int, value: int) -> None:
        """Bits 0 and 1 are kept; the rest cannot be written."""
        self.pit.flags = self.pit.flags & ~FLAG_SPEAKER_DATA_ON | value & FLAG_SPEAKER_DATA_ON
        self.pit.set_gate(2, value & 1)
