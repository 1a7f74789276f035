"""A listing with its exits beside it: runs column one, and writes columns three and four anew.

    bytes     guest         | VM exit                        | ends in
    b0 48     mov al, 'H'
    ee        out dx, al    | IO_INSTRUCTION out 0x3f8 <- 48 | KVM_EXIT_IO out 0x3f8 <- 48

"VM exit" is what the silicon does at that address, "ends in" who deals with it. In a test,
``annotate(LISTING, machine) == tidy(LISTING)`` makes the table itself the assertion: when it
fails, the difference shows the corrected row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vmxsim.vmm.loaders.listing import Listing, parse_listing

if TYPE_CHECKING:
    from vmxsim.tools.exit_columns import ExitColumns
    from vmxsim.vmm.machine import Machine

LONGEST_RUN_S: Final = 60.0
"""How long annotate() lets a guest run on a machine of its own, in seconds of the host's time."""


def tidy(text: str) -> str:
    """The listing as annotate() lays it out, with its columns as they stand."""
    return parse_listing(text).render()


def annotate(
    text: str,
    machine: Machine | None = None,
    *,
    irqchip: bool | None = None,
    name: str = "listing",
) -> str:
    """Run a listing to its end, and return it with "VM exit" and "ends in" filled in.

    Give a machine that has not run yet, and close it afterwards. Without one, the listing's own
    wishes and ``irqchip`` decide, and a guest that does not end is stopped after a minute.
    """
    if machine is not None:
        return _annotate(text, machine, name)
    from vmxsim.vmm.config import Config
    from vmxsim.vmm.machine import Machine as NewMachine

    with NewMachine(Config(irqchip=irqchip, timeout_s=LONGEST_RUN_S)) as fresh:
        return _annotate(text, fresh, name)


def _annotate(text: str, machine: Machine, name: str) -> str:
    from vmxsim.tools.exit_columns import ExitColumns

    config = machine.config
    listing = parse_listing(
        text, name, mode=config.mode, load_address=config.load_address, entry=config.entry
    )
    columns = ExitColumns(lambda vcpu_id: machine.system.cpus[vcpu_id].kvm_run)
    machine.probes.add(columns)
    machine.load(listing.image())
    machine.run()
    machine.probes.remove(columns)
    columns.finish()
    return fill(listing, columns)


def fill(listing: Listing, columns: ExitColumns) -> str:
    """Write what was collected beside the rows it belongs to; exits elsewhere are left out."""
    cells: dict[int, tuple[str, str]] = {}
    for address, exits in columns.exits.items():
        row = listing.row_at(address)
        if row is not None:
            cells[row.number] = exits.cell(True), columns.ends[address].cell(False)
    return listing.render(cells)
