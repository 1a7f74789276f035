"""The pair of 8259A interrupt controllers: 16 lines in, one INT output, vectors on acknowledge.

Linux: arch/x86/kvm/i8259.c. Where Linux takes a short cut and the Intel 8259A data sheet does not
(special mask mode, the in-service bit of a poll, ISR after ICW1), this follows the data sheet.
Like Linux and like PC chipsets: an edge stays latched until acknowledged although its line falls
(so the PIT may pulse), LTIM of ICW1 gives way to the ELCR, and 8080 (MCS-80) vectors are left out.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from enum import IntEnum
from functools import partial
from typing import NamedTuple

CASCADE = 2
"""The master's input to which the slave's INT is wired."""

SPURIOUS = 7
"""What a chip answers when it is acknowledged and nothing is pending."""

MASTER_ELCR_MASK = 0xF8
SLAVE_ELCR_MASK = 0xDE

# Operation command word 2, bits 7:5 (R, SL, EOI).
ROTATE_IN_AEOI_CLEAR, NON_SPECIFIC_EOI, NO_OPERATION, SPECIFIC_EOI = 0, 1, 2, 3
ROTATE_IN_AEOI_SET, ROTATE_ON_NON_SPECIFIC_EOI, SET_PRIORITY, ROTATE_ON_SPECIFIC_EOI = 4, 5, 6, 7


class Delivery(IntEnum):
    """What became of a request; the numbers are KVM_IRQ_LINE_STATUS's answers."""

    IGNORED = -1
    COALESCED = 0
    DELIVERED = 1


class PicState(NamedTuple):
    """One chip, field by field as struct kvm_pic_state has it."""

    last_irr: int = 0
    irr: int = 0
    imr: int = 0
    isr: int = 0
    priority_add: int = 0
    irq_base: int = 0
    read_reg_select: int = 0
    poll: int = 0
    special_mask: int = 0
    init_state: int = 0
    auto_eoi: int = 0
    rotate_on_auto_eoi: int = 0
    special_fully_nested_mode: int = 0
    init4: int = 0
    elcr: int = 0
    elcr_mask: int = 0


class I8259:
    """One 8259A: command and status at offset 0, mask and the later ICWs at offset 1.

    It reports what it does to its pair and never looks at the other chip.
    """

    def __init__(self, pair: I8259Pair, first_line: int, elcr_mask: int) -> None:
        self.pair, self.first_line = pair, first_line
        self.state = PicState(elcr_mask=elcr_mask)

    @property
    def state(self) -> PicState:
        """Everything in the chip; assign to restore it, then tell the pair to settle."""
        return PicState(*(getattr(self, name) for name in PicState._fields))

    @state.setter
    def state(self, state: PicState) -> None:
        (
            self.last_irr, self.irr, self.imr, self.isr, self.priority_add, self.irq_base,
            self.read_reg_select, self.poll, self.special_mask, self.init_state, self.auto_eoi,
            self.rotate_on_auto_eoi, self.special_fully_nested_mode, self.init4, self.elcr,
            self.elcr_mask,
        ) = state  # fmt: skip

    def read(self, offset: int, size: int) -> int:
        """IRR, ISR or IMR; or, once after a poll command, the poll word."""
        with self.pair.settling:
            if self.poll:
                self.poll = 0
                return self._poll_word()
            if offset & 1:
                return self.imr
            return self.isr if self.read_reg_select else self.irr

    def write(self, offset: int, size: int, value: int) -> None:
        """A command word; which one is told by the offset, bits 4:3 and what came before."""
        value &= 0xFF
        if value == self.imr and offset & 1 and self.init_state == 0:
            return  # OCW1 with the mask that is set: guests write it often
        with self.pair.settling:
            if not offset & 1:
                if value & 0x10:
                    self._icw1(value)
                elif value & 0x08:
                    self._ocw3(value)
                else:
                    self._ocw2(value)
            elif self.init_state == 0:
                changed, self.imr = self.imr ^ value, value
                self.pair.note_masks(self.first_line, changed, value)
            else:
                self._icw2_to_4(value)

    def drive(self, line: int, level: int) -> Delivery:
        """Input `line` (0 to 7) is now at `level`."""
        mask = 1 << line
        delivery = Delivery.DELIVERED
        if not level:
            self.last_irr &= ~mask
            if self.elcr & mask:
                self.irr &= ~mask
        else:
            if self.elcr & mask or not self.last_irr & mask:
                delivery = Delivery.COALESCED if self.irr & mask else Delivery.DELIVERED
                self.irr |= mask
            self.last_irr |= mask
        return Delivery.IGNORED if self.imr & mask else delivery

    def pending(self) -> int | None:
        """The line INT is raised for, if any: the highest request above everything in service."""
        requests = self.irr & ~self.imr
        if not requests:
            return None
        blocking = self.isr
        if self.special_mask:
            blocking &= ~self.imr
        if self.special_fully_nested_mode and not self.first_line:
            blocking &= ~(1 << CASCADE)
        rank = self._rank(requests)
        line = (rank + self.priority_add) & 7
        return line if rank < self._rank(blocking) else None

    def acknowledge(self) -> int:
        """INTA: the pending line goes into service. SPURIOUS when the request has gone."""
        line = self.pending()
        if line is None:
            return SPURIOUS
        mask = 1 << line
        self.isr |= mask
        if not self.elcr & mask:
            self.irr &= ~mask
        if self.auto_eoi:
            if self.rotate_on_auto_eoi:
                self.priority_add = (line + 1) & 7
            self._end(line)
        return line

    def _rank(self, lines: int) -> int:
        """Rank of the best of `lines` under the present rotation; 8 when there is none."""
        rotated = (lines | lines << 8) >> self.priority_add & 0xFF
        return (rotated & -rotated).bit_length() - 1 if rotated else 8

    def _end(self, line: int) -> None:
        self.isr &= ~(1 << line)
        self.pair.note_eoi(self.first_line + line)

    def _poll_word(self) -> int:
        line = self.pending()
        if line is None:
            return SPURIOUS
        if self.first_line:
            self.pair.master.irr &= ~(1 << CASCADE)
        self.acknowledge()
        return 0x80 | line

    def _icw1(self, value: int) -> None:
        ended = self.isr
        self.irr &= self.elcr
        self.imr = self.isr = self.priority_add = 0
        self.special_mask = self.read_reg_select = self.poll = 0
        self.rotate_on_auto_eoi = 0
        self.init4 = value & 1
        if not self.init4:
            self.special_fully_nested_mode = self.auto_eoi = 0
        self.init_state = 1
        for line in range(8):
            if ended >> line & 1:
                self.pair.note_eoi(self.first_line + line)

    def _icw2_to_4(self, value: int) -> None:
        if self.init_state == 1:
            self.irq_base = value & 0xF8
            self.init_state = 2
        elif self.init_state == 2:  # ICW3, the wiring: known already
            self.init_state = 3 if self.init4 else 0
        else:
            self.special_fully_nested_mode = value >> 4 & 1
            self.auto_eoi = value >> 1 & 1
            self.init_state = 0

    def _ocw2(self, value: int) -> None:
        command, line = value >> 5, value & 7
        if command in (ROTATE_IN_AEOI_CLEAR, ROTATE_IN_AEOI_SET):
            self.rotate_on_auto_eoi = command >> 2
        elif command in (NON_SPECIFIC_EOI, ROTATE_ON_NON_SPECIFIC_EOI):
            # "A non-specific EOI does not clear a level masked under special mask mode."
            rank = self._rank(self.isr & ~self.imr if self.special_mask else self.isr)
            if rank < 8:
                line = (rank + self.priority_add) & 7
                if command == ROTATE_ON_NON_SPECIFIC_EOI:
                    self.priority_add = (line + 1) & 7
                self._end(line)
        elif command in (SPECIFIC_EOI, ROTATE_ON_SPECIFIC_EOI):
            if command == ROTATE_ON_SPECIFIC_EOI:
                self.priority_add = (line + 1) & 7
            self._end(line)
        elif command == SET_PRIORITY:
            self.priority_add = (line + 1) & 7

    def _ocw3(self, value: int) -> None:
        if value & 0x40:
            self.special_mask = value >> 5 & 1
        if value & 0x04:
            self.poll = 1
        elif value & 0x02:
            self.read_reg_select = value & 1


class Elcr:
    """Edge/level control registers: offset 0 for the master, 1 for the slave; a 1 is level."""

    def __init__(self, pair: I8259Pair) -> None:
        self.pair = pair

    def read(self, offset: int, size: int) -> int:
        """The lines of one chip that are level triggered."""
        return self.pair.chips[offset & 1].elcr

    def write(self, offset: int, size: int, value: int) -> None:
        """Lines 0, 1, 2, 8 and 13 stay edge triggered whatever is written."""
        with self.pair.settling:
            chip = self.pair.chips[offset & 1]
            chip.elcr = value & chip.elcr_mask


class Settling:
    """The pair's lock; on the way out INT follows the inputs, then listeners hear of it."""

    def __init__(self, pair: I8259Pair) -> None:
        self.pair, self.lock = pair, threading.RLock()

    def __enter__(self) -> None:
        self.lock.acquire()

    def __exit__(self, *_: object) -> None:
        pair = self.pair
        pair.settle()
        self.lock.release()
        if pair.notes or pair.output != pair.announced:
            pair.announce()


class I8259Pair:
    """Master and slave with their cascade: ports `master`, `slave` and `elcr`, lines 0 to 15.

    Callbacks, all outside the lock: `on_output(level)` when INT changes, `on_eoi(line)` when a
    line leaves service (Linux: kvm_notify_acked_irq), `on_mask(line, masked)` when a mask bit
    changes (Linux: kvm_fire_mask_notifiers). set_irq and intack may come from any thread.
    """

    def __init__(self, on_output: Callable[[bool], None] | None = None) -> None:
        self.on_output = on_output
        self.on_eoi: Callable[[int], None] | None = None
        self.on_mask: Callable[[int, bool], None] | None = None
        self.output = False
        self.announced = False
        self.notes: list[Callable[[], None]] = []
        self.settling = Settling(self)
        self.master = I8259(self, 0, MASTER_ELCR_MASK)
        self.slave = I8259(self, 8, SLAVE_ELCR_MASK)
        self.chips = (self.master, self.slave)
        self.elcr = Elcr(self)

    def set_irq(self, line: int, level: int) -> Delivery:
        """Drive one of the 16 lines; say whether that made a new request."""
        with self.settling:
            return self.chips[line >> 3].drive(line & 7, level)

    def intack(self) -> int:
        """INTA from the processor: the vector. Spurious requests give line 7 (or 15)."""
        with self.settling:
            line = self.master.acknowledge()
            # A spurious 7 is answered by the master alone, so CASCADE means a real request.
            if line != CASCADE:
                return self.master.irq_base + line
            return self.slave.irq_base + self.slave.acknowledge()

    def reset(self) -> None:
        """Power-on state. Lines held high are forgotten: their devices drive them again."""
        with self.settling:
            self.master.state = PicState(elcr_mask=MASTER_ELCR_MASK)
            self.slave.state = PicState(elcr_mask=SLAVE_ELCR_MASK)

    def get_state(self) -> tuple[PicState, PicState]:
        """Master and slave, as KVM_GET_IRQCHIP gives them."""
        with self.settling:
            return self.master.state, self.slave.state

    def set_state(self, master: PicState, slave: PicState) -> None:
        """Put both chips back. INT follows."""
        with self.settling:
            self.master.state, self.slave.state = master, slave

    def settle(self) -> None:
        """Carry the slave's INT to the master's input 2, and the master's to `output`."""
        if self.slave.pending() is not None:
            # A pulse, as in Linux: the next slave request makes a new edge without an EOI.
            self.master.drive(CASCADE, 1)
            self.master.drive(CASCADE, 0)
        self.output = self.master.pending() is not None

    def note_eoi(self, line: int) -> None:
        """A chip took `line` out of service; told onwards once the lock is free."""
        if self.on_eoi is not None:
            self.notes.append(partial(self.on_eoi, line))

    def note_masks(self, first_line: int, changed: int, masks: int) -> None:
        """Mask bits `changed` of the chip that starts at `first_line`."""
        if (on_mask := self.on_mask) is None:
            return
        for bit in range(8):
            if changed >> bit & 1:
                self.notes.append(partial(on_mask, first_line + bit, bool(masks >> bit & 1)))

    def announce(self) -> None:
        """Tell the listeners what happened since they last heard."""
        while self.notes:
            self.notes.pop(0)()
        if self.output != self.announced:
            self.announced = self.output
            if self.on_output is not None:
                self.on_output(self.output)
