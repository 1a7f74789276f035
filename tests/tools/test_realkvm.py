"""What realkvm promises even where there is no /dev/kvm; the rest is in tests/real_kvm."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from vmxsim.errors import EngineError
from vmxsim.kvm import api
from vmxsim.tools import realkvm

PAIRS = [
    (api.Kvm, realkvm.RealKvm),
    (api.Vm, realkvm.RealVm),
    (api.Vcpu, realkvm.RealVcpu),
]


@pytest.mark.parametrize(("simulated", "real"), PAIRS)
def test_both_have_the_same_methods_with_the_same_parameters(simulated: type, real: type) -> None:
    methods = [name for name, value in inspect.getmembers(simulated, inspect.isfunction)
               if name[0] != "_"]  # fmt: skip
    assert methods
    for name in methods:
        ours = inspect.signature(getattr(simulated, name))
        theirs = inspect.signature(getattr(real, name))
        assert list(ours.parameters) == list(theirs.parameters), name


def test_a_missing_device_is_one_clear_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(realkvm, "DEVICE", str(tmp_path / "kvm"))
    monkeypatch.setattr(realkvm.sys, "platform", "linux")
    with pytest.raises(EngineError, match="no .*/kvm: load the kvm module"):
        realkvm.RealKvm()


def test_another_system_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(realkvm.sys, "platform", "darwin")
    with pytest.raises(EngineError, match="exists on Linux only"):
        realkvm.RealKvm()
