"""The interrupt controllers, told as histories of what a guest does and what INT and INTA say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmxsim.kvm.i8259 import I8259, Delivery, I8259Pair

MASTER_BASE, SLAVE_BASE = 0x20, 0x28
EOI, POLL, READ_IRR, READ_ISR = 0x20, 0x0C, 0x0A, 0x0B


def initialise(chip: I8259, base: int, icw4: int = 0x01) -> None:
    chip.write(0, 1, 0x11)
    chip.write(1, 1, base)
    chip.write(1, 1, 4 if base == MASTER_BASE else 2)
    chip.write(1, 1, icw4)


@pytest.fixture
def pic() -> I8259Pair:
    pair = I8259Pair()
    initialise(pair.master, MASTER_BASE)
    initialise(pair.slave, SLAVE_BASE)
    return pair


def pulse(pic: I8259Pair, line: int) -> Delivery:
    delivery = pic.set_irq(line, 1)
    pic.set_irq(line, 0)
    return delivery


def isr(chip: I8259) -> int:
    chip.write(0, 1, READ_ISR)
    return chip.read(0, 1)


def irr(chip: I8259) -> int:
    chip.write(0, 1, READ_IRR)
    return chip.read(0, 1)


def test_an_edge_is_one_interrupt_and_is_over_with_eoi(pic: I8259Pair) -> None:
    heard: list[bool] = []
    pic.on_output = heard.append
    pic.set_irq(0, 1)
    assert (pic.output, irr(pic.master), isr(pic.master)) == (True, 0x01, 0x00)
    assert pic.intack() == 0x20
    assert (pic.output, irr(pic.master), isr(pic.master)) == (False, 0x00, 0x01)
    pic.master.write(0, 1, EOI)
    assert isr(pic.master) == 0
    assert not pic.output, "the line is still high, but there was no new edge"
    pic.set_irq(0, 0)
    pic.set_irq(0, 1)
    assert heard == [True, False, True]


def test_a_level_comes_back_until_it_is_withdrawn(pic: I8259Pair) -> None:
    pic.elcr.write(1, 1, 0xFF)
    assert pic.elcr.read(1, 1) == 0xDE, "lines 8 and 13 stay edges"
    pic.set_irq(11, 1)
    history = []
    for _ in range(2):
        history.append(pic.intack())
        pic.slave.write(0, 1, EOI)
        pic.master.write(0, 1, EOI)
    pic.set_irq(11, 0)
    assert history == [0x2B, 0x2B]
    assert pic.slave.pending() is None


def test_the_cascade_puts_both_chips_in_service(pic: I8259Pair) -> None:
    pulse(pic, 8)
    pulse(pic, 15)
    pulse(pic, 3)
    assert pic.intack() == 0x28, "the slave sits on line 2 and so precedes line 3"
    assert (isr(pic.master), isr(pic.slave)) == (0x04, 0x01)
    pic.slave.write(0, 1, EOI)
    assert not pic.output, "the master still has its line 2 in service"
    pic.master.write(0, 1, EOI)
    assert pic.intack() == 0x2F
    pic.slave.write(0, 1, EOI)
    pic.master.write(0, 1, EOI)
    assert pic.intack() == 0x23


def test_higher_lines_interrupt_a_service_and_lower_ones_wait(pic: I8259Pair) -> None:
    pulse(pic, 4)
    assert pic.intack() == 0x24
    pulse(pic, 6)
    assert not pic.output
    pulse(pic, 1)
    assert pic.intack() == 0x21
    assert isr(pic.master) == 0x12
    pic.master.write(0, 1, EOI)
    assert isr(pic.master) == 0x10, "a non-specific EOI ends the highest"
    pic.master.write(0, 1, 0x60 | 4)
    assert pic.intack() == 0x26


def test_a_request_that_has_gone_is_line_7_and_not_in_service(pic: I8259Pair) -> None:
    assert pic.intack() == 0x27
    assert isr(pic.master) == 0
    pulse(pic, 9)
    pic.slave.write(1, 1, 0xFF)
    assert pic.intack() == 0x2F, "the master had latched the cascade"
    assert (isr(pic.master), isr(pic.slave)) == (0x04, 0x00)


def test_a_mask_holds_a_request_back_without_losing_it(pic: I8259Pair) -> None:
    masks: list[tuple[int, bool]] = []
    pic.on_mask = lambda line, masked: masks.append((line, masked))
    pic.master.write(1, 1, 0x11)
    pic.slave.write(1, 1, 0x80)
    assert masks == [(0, True), (4, True), (15, True)]
    assert pic.set_irq(4, 1) is Delivery.IGNORED
    assert not pic.output
    pic.master.write(1, 1, 0x01)
    assert pic.master.read(1, 1) == 0x01
    assert pic.intack() == 0x24


def test_a_second_edge_before_the_acknowledge_coalesces(pic: I8259Pair) -> None:
    assert [pulse(pic, 0), pulse(pic, 0)] == [Delivery.DELIVERED, Delivery.COALESCED]
    assert pic.intack() == 0x20
    assert pulse(pic, 0) is Delivery.DELIVERED


def test_auto_eoi_leaves_nothing_in_service(pic: I8259Pair) -> None:
    initialise(pic.master, MASTER_BASE, icw4=0x03)
    ended: list[int] = []
    pic.on_eoi = ended.append
    pulse(pic, 5)
    assert pic.intack() == 0x25
    assert (isr(pic.master), ended) == (0, [5])


def test_rotation_in_auto_eoi_serves_everyone_in_turn(pic: I8259Pair) -> None:
    initialise(pic.master, MASTER_BASE, icw4=0x03)
    pic.master.write(0, 1, 0x80)
    served = []
    for _ in range(4):
        pulse(pic, 3)
        pulse(pic, 4)
        served.append(pic.intack())
    assert served == [0x23, 0x24, 0x23, 0x24]
    pic.master.write(0, 1, 0x00)
    pulse(pic, 3)
    pic.intack()
    pulse(pic, 3)
    pulse(pic, 4)
    assert pic.master.priority_add == 5, "rotation is off again"


def test_rotate_on_eoi_makes_the_ended_line_the_lowest(pic: I8259Pair) -> None:
    pulse(pic, 4)
    pic.intack()
    pic.master.write(0, 1, 0xA0)
    pulse(pic, 4)
    pulse(pic, 5)
    assert pic.intack() == 0x25
    pic.master.write(0, 1, 0xE0 | 5)
    pulse(pic, 6)
    assert pic.intack() == 0x26


def test_set_priority_names_the_lowest_line(pic: I8259Pair) -> None:
    pic.master.write(0, 1, 0xC0 | 5)
    pulse(pic, 5)
    pulse(pic, 6)
    assert pic.intack() == 0x26


def test_special_mask_mode_lets_lower_lines_through(pic: I8259Pair) -> None:
    pulse(pic, 1)
    pic.intack()
    pulse(pic, 6)
    assert not pic.output
    pic.master.write(1, 1, 0x02)
    assert not pic.output
    pic.master.write(0, 1, 0x68)
    assert pic.intack() == 0x26
    pic.master.write(0, 1, EOI)
    assert isr(pic.master) == 0x02, "a masked level is not ended by a non-specific EOI"
    pic.master.write(0, 1, 0x61)
    assert isr(pic.master) == 0
    pic.master.write(0, 1, 0x48)
    assert pic.master.special_mask == 0


def test_special_fully_nested_mode_lets_the_slave_interrupt_itself(pic: I8259Pair) -> None:
    initialise(pic.master, MASTER_BASE, icw4=0x11)
    pulse(pic, 12)
    assert pic.intack() == 0x2C
    pulse(pic, 14)
    assert not pic.output
    pulse(pic, 9)
    assert pic.intack() == 0x29
    assert isr(pic.slave) == 0x12


def test_a_poll_acknowledges(pic: I8259Pair) -> None:
    pic.master.write(0, 1, POLL)
    assert pic.master.read(0, 1) == 0x07
    pulse(pic, 5)
    pic.master.write(0, 1, POLL)
    assert pic.master.read(1, 1) == 0x85, "whichever register is read"
    assert not pic.output
    assert pic.master.read(1, 1) == 0x00, "once only"
    assert isr(pic.master) == 0x20


def test_a_poll_of_the_slave_withdraws_the_cascade(pic: I8259Pair) -> None:
    pulse(pic, 10)
    assert pic.output
    pic.slave.write(0, 1, POLL)
    assert pic.slave.read(0, 1) == 0x82
    assert not pic.output


def test_icw1_forgets_edges_masks_and_services(pic: I8259Pair) -> None:
    pic.elcr.write(0, 1, 0x20)
    ended: list[int] = []
    pic.on_eoi = ended.append
    pulse(pic, 3)
    pic.intack()
    pulse(pic, 4)
    pic.set_irq(5, 1)
    pic.master.write(1, 1, 0xF0)
    pic.master.write(0, 1, 0x11)
    assert (irr(pic.master), isr(pic.master), ended) == (0x20, 0, [3])
    pic.master.write(1, 1, 0x48)
    pic.master.write(1, 1, 0x04)
    pic.master.write(1, 1, 0x01)
    assert pic.master.read(1, 1) == 0, "no mask"
    assert pic.intack() == 0x4D, "the level is still there, the edge is not"


def test_icw1_without_icw4_needs_only_two_more_words(pic: I8259Pair) -> None:
    pic.master.write(0, 1, 0x10)
    pic.master.write(1, 1, 0x08)
    pic.master.write(1, 1, 0x04)
    pic.master.write(1, 1, 0xFE)
    assert pic.master.read(1, 1) == 0xFE, "this one was a mask"
    pulse(pic, 0)
    assert pic.intack() == 0x08


def test_the_end_of_an_interrupt_may_raise_the_next_from_its_callback(pic: I8259Pair) -> None:
    left = [1, 1]

    def again(line: int) -> None:
        if left and left.pop():
            pulse(pic, line)

    pic.on_eoi = again
    pulse(pic, 0)
    vectors = []
    while pic.output:
        vectors.append(pic.intack())
        pic.master.write(0, 1, EOI)
    assert vectors == [0x20] * 3


@given(
    st.lists(st.tuples(st.integers(0, 15), st.booleans()), max_size=30),
    st.integers(0, 255),
    st.integers(0, 255),
)
def test_state_goes_out_and_comes_back(
    lines: list[tuple[int, bool]], elcr: int, mask: int
) -> None:
    first, second = I8259Pair(), I8259Pair()
    initialise(first.master, MASTER_BASE)
    initialise(first.slave, SLAVE_BASE)
    first.elcr.write(0, 1, elcr)
    first.slave.write(1, 1, mask)
    for line, level in lines:
        first.set_irq(line, level)
        if line == 5 and first.output:
            first.intack()
    second.set_state(*first.get_state())
    assert second.output is first.output
    assert [second.intack() for _ in range(4)] == [first.intack() for _ in range(4)]
    assert second.get_state() == first.get_state()
    second.reset()
    assert not second.output


@given(st.lists(st.integers(0, 15).filter(lambda line: line != 2), max_size=20))
def test_every_edge_is_served_once_in_order_of_priority(lines: list[int]) -> None:
    pic = I8259Pair()
    initialise(pic.master, MASTER_BASE)
    initialise(pic.slave, SLAVE_BASE)
    for line in lines:
        pulse(pic, line)
    served = []
    while pic.output:
        vector = pic.intack()
        served.append(vector - MASTER_BASE)
        if vector >= SLAVE_BASE:
            pic.slave.write(0, 1, EOI)
        pic.master.write(0, 1, EOI)
    assert served == sorted(set(lines), key=lambda line: (2 if line > 7 else line, line))
