"""A 16550A serial port with an infinitely fast line: what is written is out at once.

National Semiconductor, "PC16550D Universal Asynchronous Receiver/Transmitter with FIFOs". As in
QEMU's hw/char/serial.c; simplified: bytes take no time, so the character-timeout interrupt comes at
once when the FIFO holds less than its trigger level, and input never overruns: the sender waits.

    offset  read                 write                 with DLAB
      0     RBR received byte    THR byte to send      DLL divisor, low
      1     IER                  IER interrupts on     DLM divisor, high
      2     IIR which interrupt  FCR FIFO control
      3     LCR                  LCR line control, DLAB
      4     MCR                  MCR modem control, loopback
      5     LSR line status      (ignored)
      6     MSR modem status     (ignored)
      7     SCR                  SCR scratch
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from vmxsim.vmm.devices.base import Device, IrqLine, unconnected

FIFO_SIZE = 16
TRIGGER_LEVELS = (1, 4, 8, 14)


class Ier:
    """Interrupt enable register."""

    RDI = 1 << 0
    THRI = 1 << 1
    RLSI = 1 << 2
    MSI = 1 << 3


class Iir:
    """Interrupt identification register; lower bits mean higher in the list below."""

    NO_INT = 0x01
    MSI = 0x00
    THRI = 0x02
    RDI = 0x04
    RLSI = 0x06
    CTI = 0x0C
    FIFOS_ENABLED = 0xC0


class Lcr:
    """Line control register."""

    BREAK = 1 << 6
    DLAB = 1 << 7


class Mcr:
    """Modem control register."""

    DTR = 1 << 0
    RTS = 1 << 1
    OUT1 = 1 << 2
    OUT2 = 1 << 3
    LOOP = 1 << 4


class Lsr:
    """Line status register."""

    DR = 1 << 0
    OE = 1 << 1
    PE = 1 << 2
    FE = 1 << 3
    BI = 1 << 4
    THRE = 1 << 5
    TEMT = 1 << 6
    ERRORS = OE | PE | FE | BI


class Msr:
    """Modem status register; the low half says what changed since it was read."""

    DELTA = 0x0F
    TERI = 1 << 2
    CTS = 1 << 4
    DSR = 1 << 5
    RI = 1 << 6
    DCD = 1 << 7


class Serial(Device):
    """One port. `sink` gets what the guest sends; `receive` is what the guest gets."""

    def __init__(self, sink: Callable[[bytes], object], irq: IrqLine = unconnected) -> None:
        self.sink = sink
        self.irq = irq
        self.waiting: deque[int] = deque()
        """Input for which the port has no room yet."""
        self._level = 0
        self.reset()

    def reset(self) -> None:
        """Power-on: 9600 baud, FIFOs off, nothing received. Input that waits goes on waiting."""
        self.divisor = 12
        self.ier = 0
        self.lcr = 0
        self.mcr = Mcr.OUT2
        self.lsr = Lsr.THRE | Lsr.TEMT
        self.msr = Msr.DCD | Msr.DSR | Msr.CTS
        self.scr = 0
        self.fifo_on = False
        self.trigger = 1
        self.thr_pending = False
        self.received: deque[int] = deque()
        self._refill()

    # -- the line ----------------------------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        """Send bytes to the guest. None is lost: what has no room waits until the guest reads."""
        self.waiting.extend(data)
        self._refill()

    def _refill(self) -> None:
        """Take from the sender what fits."""
        if not self.mcr & Mcr.LOOP:
            room = FIFO_SIZE if self.fifo_on else 1
            while self.waiting and len(self.received) < room:
                self.received.append(self.waiting.popleft())
        if self.received:
            self.lsr |= Lsr.DR
        self._update_irq()

    def _transmit(self, byte: int) -> None:
        if not self.mcr & Mcr.LOOP:
            self.sink(bytes((byte,)))
            return
        if len(self.received) >= (FIFO_SIZE if self.fifo_on else 1):
            self.lsr |= Lsr.OE
            if not self.fifo_on:
                self.received[0] = byte
        else:
            self.received.append(byte)
        self.lsr |= Lsr.DR

    # -- registers ---------------------------------------------------------------------------------

    def read(self, offset: int, size: int) -> int:
        """Registers 0, 2, 5 and 6 change by being read."""
        if offset == 5:
            lsr = self.lsr
            if lsr & Lsr.ERRORS:
                self.lsr = lsr & ~Lsr.ERRORS
                self._update_irq()
            return lsr
        if offset == 0:
            return self.divisor & 0xFF if self.lcr & Lcr.DLAB else self._read_rbr()
        if offset == 1:
            return self.divisor >> 8 if self.lcr & Lcr.DLAB else self.ier
        if offset == 2:
            return self._read_iir()
        if offset == 6:
            return self._read_msr()
        return (self.lcr, self.mcr, 0, 0, self.scr)[offset - 3]

    def _read_rbr(self) -> int:
        if not self.received:
            return 0
        byte = self.received.popleft()
        if not self.received:
            # The line drops before the next byte comes: an edge-triggered controller needs it.
            self.lsr &= ~Lsr.DR
            self._update_irq()
        self._refill()
        return byte

    def _read_iir(self) -> int:
        cause = self._cause()
        if cause == Iir.THRI:
            self.thr_pending = False
            self._update_irq()
        return cause | (Iir.FIFOS_ENABLED if self.fifo_on else 0)

    def _read_msr(self) -> int:
        if self.mcr & Mcr.LOOP:
            mcr = self.mcr
            return (mcr & Mcr.OUT2) << 4 | (mcr & Mcr.OUT1) << 4 | (mcr & 1) << 5 | (mcr & 2) << 3
        msr = self.msr
        self.msr &= ~Msr.DELTA
        self._update_irq()
        return msr

    def write(self, offset: int, size: int, value: int) -> None:
        """Write a register; THR sends at once."""
        value &= 0xFF
        if offset == 0 and not self.lcr & 0x80:
            if not self.mcr & 0x10 and not self.ier:
                # What a polling guest does for every letter: nothing but the letter happens.
                self.thr_pending = True
                self.sink(bytes((value,)))
            else:
                self._write_thr(value)
        elif offset == 0:
            self.divisor = self.divisor & 0xFF00 | value
        elif offset == 1 and self.lcr & Lcr.DLAB:
            self.divisor = self.divisor & 0xFF | value << 8
        elif offset == 1:
            self._write_ier(value & 0x0F)
        elif offset == 2:
            self._write_fcr(value)
        elif offset == 3:
            self.lcr = value
        elif offset == 4:
            self._write_mcr(value & 0x1F)
        elif offset == 7:
            self.scr = value

    def _write_thr(self, value: int) -> None:
        """Send; the line drops while the byte is on its way, so that an edge follows each byte."""
        self.thr_pending = False
        self._update_irq()
        self._transmit(value)
        self.thr_pending = True
        self._update_irq()

    def _write_ier(self, value: int) -> None:
        if value & Ier.THRI and not self.ier & Ier.THRI:
            self.thr_pending = True
        self.ier = value
        self._update_irq()

    def _write_fcr(self, value: int) -> None:
        on = bool(value & 1)
        if on != self.fifo_on or value & 2:
            self._empty()
        if on != self.fifo_on or value & 4:
            self.thr_pending = True
        self.fifo_on = on
        self.trigger = TRIGGER_LEVELS[value >> 6 & 3] if on else 1
        self._refill()

    def _empty(self) -> None:
        """Empty the receiver. What came over the line counts as not sent yet, so it is not lost."""
        if not self.mcr & Mcr.LOOP:
            self.waiting.extendleft(reversed(self.received))
        self.received.clear()
        self.lsr &= ~Lsr.DR

    def _write_mcr(self, value: int) -> None:
        if (value ^ self.mcr) & Mcr.LOOP:
            self._empty()
        self.mcr = value
        self._refill()

    # -- interrupts --------------------------------------------------------------------------------

    def _cause(self) -> int:
        """The interrupt of highest priority that is enabled and pending."""
        ier = self.ier
        if ier & Ier.RLSI and self.lsr & Lsr.ERRORS:
            return Iir.RLSI
        if ier & Ier.RDI and self.received:
            return Iir.RDI if len(self.received) >= self.trigger else Iir.CTI
        if ier & Ier.THRI and self.thr_pending:
            return Iir.THRI
        if ier & Ier.MSI and self.msr & Msr.DELTA:
            return Iir.MSI
        return Iir.NO_INT

    def _update_irq(self) -> None:
        """Follow the cause on the line. OUT2 gates it on a PC, and is not looked at, as in QEMU."""
        level = int(self._cause() != Iir.NO_INT)
        if level != self._level:
            self._level = level
            self.irq(level)
