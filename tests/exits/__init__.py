"""One file of listings per exit family; in test_every_exit and test_events, one row per exit."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from vmxsim.vmm.machine import Machine

MakeMachine: TypeAlias = "Callable[..., Machine]"
"""What the fixture ``machine`` gives: Config's options in, a machine out."""
