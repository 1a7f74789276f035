"""The start-up checks: a wrong engine is one clear error, never a crash later."""

from __future__ import annotations

import pytest

from vmxsim.cpu import image
from vmxsim.cpu.cpu import UnicornCpu
from vmxsim.errors import EngineError


def test_a_wrong_version_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image, "unicorn_version", "2.0.1")
    with pytest.raises(EngineError, match=r"Unicorn 2\.0\.1 is installed.*pip install unicorn==2"):
        UnicornCpu()


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("IMAGE_SIZE", 5570, "elsewhere"),
        ("EIP", 136, "registers"),
        ("VENDOR", 5624, "CPUID"),
        ("INTERRUPT_REQUEST", 32, "intercepts"),
    ],
)
def test_another_layout_is_noticed(
    monkeypatch: pytest.MonkeyPatch, name: str, value: int, words: str
) -> None:
    monkeypatch.setattr(image, name, value)
    with pytest.raises(EngineError, match=words):
        UnicornCpu()


def test_two_cpus_do_not_share_anything() -> None:
    first, second = UnicornCpu(), UnicornCpu()
    first.gpr[3] = 5
    assert second.gpr[3] == 0
    assert first.live.env != second.live.env
