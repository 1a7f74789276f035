from __future__ import annotations

import pytest

from vmxsim.arch.instruction_errors import InstructionError


def test_every_number_but_the_unused_ones() -> None:
    assert {int(error) for error in InstructionError} == set(range(1, 29)) - {14, 21, 27}


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (5, "VMRESUME with non-launched VMCS"),
        (7, "VM entry with invalid control field(s)"),
        (12, "unsupported VMCS component"),
        (26, "blocked by MOV SS"),
        (28, "INVEPT/INVVPID"),
    ],
)
def test_meanings(number: int, words: str) -> None:
    assert words in InstructionError(number).message
