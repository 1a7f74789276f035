"""The MC146818 real-time clock and its battery-backed memory, with a PC's memory sizes in it.

Motorola, "MC146818A"; QEMU: hw/rtc/mc146818rtc.c and pc_cmos_init in hw/i386/pc.c. Nothing ticks:
date and flags are computed when someone looks, and an alarm is set at the clock only while an
interrupt is enabled. Left out: daylight saving, the day-of-week register (it follows from the
date), the square wave.

    register A   UIP | divider (2 = running) | rate of the periodic interrupt
    register B   SET | PIE | AIE | UIE | SQWE | DM (binary) | 24 h | DSE
    register C   IRQF | PF | AF | UF, cleared by reading
    register D   VRT: the battery is good
"""

from __future__ import annotations

from vmxsim.clock import NS_PER_S, Alarm, Clock
from vmxsim.vmm.devices.base import Device, IrqLine, unconnected
from vmxsim.vmm.devices.calendar import Moment, from_seconds, to_seconds

SECONDS, SECONDS_ALARM, MINUTES, MINUTES_ALARM, HOURS, HOURS_ALARM = range(6)
DAY_OF_WEEK, DAY_OF_MONTH, MONTH, YEAR = range(6, 10)
REG_A, REG_B, REG_C, REG_D = range(10, 14)
CENTURY = 0x32
SIZE = 128

UIP = 0x80
DIVIDER, DIVIDER_RUNNING, RATE = 0x70, 0x20, 0x0F
SET, PIE, AIE, UIE, DM, HOURS_24 = 0x80, 0x40, 0x20, 0x10, 0x04, 0x02
IRQF, PF, AF, UF = 0x80, 0x40, 0x20, 0x10
VRT = 0x80
PM = 0x80
DONT_CARE = 0xC0

CRYSTAL_HZ = 32_768
UPDATE_NS = 244_141
"""UIP is set so long before the seconds change."""
DAY_S = 86_400

TIME_REGISTERS = (SECONDS, MINUTES, HOURS, DAY_OF_MONTH, MONTH, YEAR, CENTURY)


class Cmos(Device):
    """Index at offset 0 (port 0x70), data at offset 1 (port 0x71)."""

    def __init__(self, clock: Clock, memory: int = 0, irq: IrqLine = unconnected) -> None:
        self.clock = clock
        self.irq = irq
        self.index = 0
        self.ram = bytearray(SIZE)
        self.ram[REG_A] = 0x26
        self.ram[REG_B] = HOURS_24
        self.ram[0x14] = 0x02  # equipment: a coprocessor
        self.store_memory_size(memory)
        self._base_s = to_seconds(Moment(*clock.wall()))
        self._base_ns = clock.now()
        self._seen_ns = self._base_ns
        self._alarm: Alarm | None = None
        self._level = 0

    def reset(self) -> None:
        """A reset pin: interrupts off, flags gone; date and memory live on the battery."""
        self._look()
        self.index = 0
        self.ram[REG_B] &= ~(PIE | AIE | UIE)
        self.ram[REG_C] = 0
        self._update()

    def store_memory_size(self, memory: int) -> None:
        """What boot code reads: in KB below 1 MB and up to 64 MB, in 64 KB above 16 MB and 4 GB."""
        below_4g = min(memory, 0xC000_0000)
        above_1m = min(max(0, (below_4g >> 10) - 1024), 0xFFFF)
        above_16m = min(max(0, below_4g - (16 << 20)) >> 16, 0xFFFF)
        above_4g = max(0, memory - (4 << 30)) >> 16
        for at, value in ((0x15, min(memory >> 10, 640)), (0x17, above_1m), (0x30, above_1m),
                          (0x34, above_16m), (0x5B, above_4g & 0xFFFF)):  # fmt: skip
            self.ram[at : at + 2] = value.to_bytes(2, "little")
        self.ram[0x5D] = above_4g >> 16 & 0xFF

    # -- ports -------------------------------------------------------------------------------------

    def read(self, offset: int, size: int) -> int:
        """The data port; the index port is write-only and floats high."""
        if offset == 0:
            return 0xFF
        index = self.index
        if index in TIME_REGISTERS or index == DAY_OF_WEEK:
            return self._time_register(index)
        if index == REG_A:
            return self.ram[REG_A] & 0x7F | (UIP if self._updating() else 0)
        if index == REG_C:
            self._look()
            flags, self.ram[REG_C] = self.ram[REG_C], 0
            self._update()
            return flags
        if index == REG_D:
            return VRT
        return self.ram[index]

    def write(self, offset: int, size: int, value: int) -> None:
        """Bit 7 of the index is the NMI mask, and not part of it."""
        index, value = self.index, value & 0xFF
        if offset == 0:
            self.index = value & 0x7F
            return
        if index in (REG_C, REG_D):
            return
        self._look()
        if index in (REG_A, REG_B):
            self._write_control(index, value)
        elif index in TIME_REGISTERS:
            self._write_time(index, value)
        elif index != DAY_OF_WEEK:
            self.ram[index] = value
        self._update()

    def _write_control(self, index: int, value: int) -> None:
        if index == REG_B and value & SET:
            value &= ~UIE
        was, seconds = self._running(), self._seconds()
        if was:
            self._freeze(seconds)
        self.ram[index] = value & 0x7F if index == REG_A else value
        if self._running() and not was:
            half = NS_PER_S // 2 if index == REG_A else 0
            self._base_s = to_seconds(self._moment_in_registers())
            self._base_ns = self.clock.now() - half
        elif was and self._running():
            self._freeze(seconds)  # in the new format

    # -- date --------------------------------------------------------------------------------------

    def _running(self) -> bool:
        return self.ram[REG_A] & DIVIDER == DIVIDER_RUNNING and not self.ram[REG_B] & SET

    def _seconds(self) -> int:
        """Seconds since 1970 that the running clock shows."""
        return self._base_s + (self.clock.now() - self._base_ns) // NS_PER_S

    def _updating(self) -> bool:
        into = (self.clock.now() - self._base_ns) % NS_PER_S
        return self._running() and into >= NS_PER_S - UPDATE_NS

    def _time_register(self, index: int) -> int:
        if self._running():
            self._freeze(self._seconds())
        return self.ram[index]

    def _freeze(self, seconds: int) -> None:
        """Put a date into the registers."""
        at = from_seconds(seconds)
        weekday = (seconds // DAY_S + 4) % 7 + 1  # 1970-01-01 was a Thursday, and Sunday is 1
        values = (at.second, at.minute, at.hour, at.day, at.month, at.year % 100, at.year // 100)
        for index, value in zip(TIME_REGISTERS, values, strict=True):
            encoded = self._hours(value) if index == HOURS else self._encode(value)
            self.ram[index] = encoded & 0xFF
        self.ram[DAY_OF_WEEK] = self._encode(weekday)

    def _write_time(self, index: int, value: int) -> None:
        if self._running():
            self._freeze(self._seconds())
        self.ram[index] = value
        if self._running():
            now = self.clock.now()
            self._base_s = to_seconds(self._moment_in_registers())
            self._base_ns = now - (now - self._base_ns) % NS_PER_S

    def _moment_in_registers(self) -> Moment:
        """The date that the registers hold, brought into range where it is none."""
        second, minute, day, month, year, century = (
            self._decode(self.ram[index])
            for index in (SECONDS, MINUTES, DAY_OF_MONTH, MONTH, YEAR, CENTURY)
        )
        hour = self._hour_of(self.ram[HOURS])
        return Moment(
            century * 100 + year, min(max(month, 1), 12), max(day, 1), hour, minute, second
        )

    def _encode(self, value: int) -> int:
        return value if self.ram[REG_B] & DM else value // 10 << 4 | value % 10

    def _decode(self, value: int) -> int:
        return value if self.ram[REG_B] & DM else (value >> 4) * 10 + (value & 15)

    def _hours(self, hour: int) -> int:
        if self.ram[REG_B] & HOURS_24:
            return self._encode(hour)
        return self._encode((hour + 11) % 12 + 1) | (PM if hour >= 12 else 0)

    def _hour_of(self, value: int) -> int:
        if self.ram[REG_B] & HOURS_24:
            return self._decode(value)
        return self._decode(value & 0x7F) % 12 + (12 if value & PM else 0)

    # -- interrupts --------------------------------------------------------------------------------

    def _period_ns(self) -> int:
        """Period of the periodic interrupt in units of 1/2^15 ns, so that it is whole; 0: none."""
        rate = self.ram[REG_A] & RATE
        if rate == 0 or self.ram[REG_A] & DIVIDER != DIVIDER_RUNNING:
            return 0
        ticks = 1 << (rate + 6 if rate <= 2 else rate - 1)
        return ticks * NS_PER_S

    def _ticks_at(self, ns: int) -> int:
        """How many periods had passed at a time."""
        period = self._period_ns()
        return (ns - self._base_ns) * CRYSTAL_HZ // period if period else 0

    def _next_second(self, ns: int) -> int:
        return ns + NS_PER_S - (ns - self._base_ns) % NS_PER_S

    def _next_alarm(self, ns: int) -> int | None:
        """When the alarm goes off next after a time; None when its registers match no time."""
        second, minute, hour = (
            None if value >= DONT_CARE else decode(value)
            for value, decode in (
                (self.ram[SECONDS_ALARM], self._decode),
                (self.ram[MINUTES_ALARM], self._decode),
                (self.ram[HOURS_ALARM], self._hour_of),
            )
        )
        start = self._base_s + (ns - self._base_ns) // NS_PER_S + 1
        wait = _seconds_until(start % DAY_S, hour, minute, second)
        if wait is None:
            return None
        return self._base_ns + (start + wait - self._base_s) * NS_PER_S

    def _look(self) -> None:
        """Set the flags for what happened since the last look."""
        before, now = self._seen_ns, self.clock.now()
        self._seen_ns = now
        flags = 0
        if self._ticks_at(now) > self._ticks_at(before):
            flags |= PF
        if self._running() and self._next_second(before) <= now:
            alarm = self._next_alarm(before)
            flags |= UF | (AF if alarm is not None and alarm <= now else 0)
        self.ram[REG_C] |= flags

    def _update(self) -> None:
        """Raise or lower the line, and have the clock call when the next interrupt is due."""
        wanted = self.ram[REG_B] & (PIE | AIE | UIE)
        level = int(self.ram[REG_C] & wanted != 0)
        self.ram[REG_C] = self.ram[REG_C] & ~IRQF | (IRQF if level else 0)
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        if wanted and not level and (due := self._due(wanted)) is not None:
            self._alarm = self.clock.call_at(due, self._ring)
        if level != self._level:
            self._level = level
            self.irq(level)

    def _due(self, wanted: int) -> int | None:
        now, times = self._seen_ns, []
        if wanted & PIE and (period := self._period_ns()):
            ticks = self._ticks_at(now) + 1
            times.append(self._base_ns - (-ticks * period // CRYSTAL_HZ))
        if wanted & UIE and self._running():
            times.append(self._next_second(now))
        if wanted & AIE and self._running() and (alarm := self._next_alarm(now)) is not None:
            times.append(alarm)
        return min(times, default=None)

    def _ring(self) -> None:
        self._alarm = None
        self._look()
        self._update()


def _seconds_until(
    start: int, hour: int | None, minute: int | None, second: int | None
) -> int | None:
    """Seconds from a second of the day to the first that matches; None in a field matches any."""
    for limit, value in ((24, hour), (60, minute), (60, second)):
        if value is not None and value >= limit:
            return None
    now = (start // 3600, start // 60 % 60, start % 60)
    best: int | None = None
    for h in range(24) if hour is None else (hour,):
        for m in range(60) if minute is None else (minute,):
            s = second
            if s is None:
                s = now[2] if (h, m) == now[:2] else 0
            wait = (h * 3600 + m * 60 + s - start) % DAY_S
            best = wait if best is None or wait < best else best
    return best
