"""A PC wired up: RAM, ports, devices, one vCPU in its own thread, and a kernel's KVM underneath.

    with Machine(Config(serial=sys.stdout.buffer.write)) as machine:
        machine.load("hello.lst")
        result = machine.run()

Nothing is global: any number of machines may run in one process.

    0x60 0x64   keyboard controller (reset, A20)     0xe9 0x402   debug console
    0x70 0x71   CMOS and clock, IRQ 8                0xf4..0xf7   debug exit
    0x80        diagnostic port                      0x3f8..0x3ff serial port, IRQ 4
    0x92        system control port A                0xcf9        reset control
"""

from __future__ import annotations

from types import TracebackType

from vmxsim.clock import Clock, HostClock, VirtualClock
from vmxsim.errors import ConfigError
from vmxsim.kvm.uapi import KvmRegs, KvmSregs
from vmxsim.probes import ExitRecord, Probes
from vmxsim.vmm import accel
from vmxsim.vmm.boot import start_state
from vmxsim.vmm.config import DEFAULT_MEMORY, ClockKind, Config, Sink
from vmxsim.vmm.cpus import (
    pause_all_vcpus,
    qemu_cpu_kick,
    qemu_destroy_vcpus,
    qemu_init_vcpu,
    run_on_cpu,
    vm_start,
)
from vmxsim.vmm.devices.base import Device, IrqLine
from vmxsim.vmm.devices.cmos import Cmos
from vmxsim.vmm.devices.debugcon import DebugCon
from vmxsim.vmm.devices.debugexit import DebugExit
from vmxsim.vmm.devices.port80 import Port80
from vmxsim.vmm.devices.reset import KeyboardController, Port92, ResetControl
from vmxsim.vmm.devices.serial import Serial
from vmxsim.vmm.image import Image
from vmxsim.vmm.kvm_all import kvm_arch_get_registers, kvm_init, kvm_set_phys_mem
from vmxsim.vmm.loaders.load import Source, load_image
from vmxsim.vmm.memory import Ram
from vmxsim.vmm.result import ExitLimit, ExitLog
from vmxsim.vmm.result import RunResult as RunResult
from vmxsim.vmm.runstate import CPUState, Stop, SystemState, debug_exit, ending

WAIT_S = 0.5
"""Longest sleep in one go, so that Ctrl-C reaches the thread that waits for a run."""


class Machine:
    """One machine. Load an image, then run; `close` it, or use it in a with statement.

    `kvm` is the KVM to use; by default the simulated one, with this machine's clock and probes. A
    KVM given without `probes` is taken to have none: max_exits then counts userspace exits.
    """

    def __init__(
        self,
        config: Config | None = None,
        *,
        kvm: accel.Kvm | None = None,
        clock: Clock | None = None,
        probes: Probes | None = None,
    ) -> None:
        self.config = config or Config()
        if clock is None:
            clock = VirtualClock() if self.config.clock is ClockKind.VIRTUAL else HostClock()
        self.clock = clock
        self.probes = probes or Probes()
        self._kvm = kvm
        self._probed = kvm is None or probes is not None
        self._limit: ExitLimit | None = None
        self.image: Image | None = None
        self.ram: Ram | None = None
        self.trace: list[ExitRecord] = []
        """Every VM exit so far, with Config(trace=True)."""
        self.serial_output = bytearray()
        self.debugcon_output = bytearray()
        self.system = SystemState(self.clock, self.probes, self.config.strict)
        self.devices: list[Device] = []
        self._wire()
        if self.config.trace:
            self.probes.add(ExitLog(self.trace))

    # -- wiring ------------------------------------------------------------------------------------

    def _wire(self) -> None:
        reset = self._request_reset
        self.serial = Serial(self._sink(self.config.serial, self.serial_output), self.irq_line(4))
        self.cmos = Cmos(self.clock, irq=self.irq_line(8))
        keyboard = KeyboardController(reset)
        debugcon = DebugCon(self._sink(self.config.debugcon, self.debugcon_output))
        self.add_device("keyboard controller", 0x60, 1, keyboard)
        self.add_device("keyboard controller", 0x64, 1, keyboard, first=4)
        self.add_device("CMOS", 0x70, 2, self.cmos)
        self.add_device("diagnostic port", 0x80, 1, Port80())
        self.add_device("system control port A", 0x92, 1, Port92(reset))
        self.add_device("debug console", 0xE9, 1, debugcon)
        self.add_device("debug exit", 0xF4, 4, DebugExit(self._debug_exit))
        self.add_device("serial port", 0x3F8, 8, self.serial)
        self.add_device("debug console", 0x402, 1, debugcon)
        self.add_device("reset control", 0xCF9, 1, ResetControl(reset))

    def add_device(self, name: str, base: int, size: int, device: Device, first: int = 0) -> None:
        """Let a device answer at ports, from its offset `first` on. PortConflict if one does."""
        self.system.ports.add_device(name, base, size, device, first)
        if device not in self.devices:
            self.devices.append(device)

    def add_mmio_device(self, name: str, gpa: int, size: int, device: Device) -> None:
        """Let a device answer at guest-physical addresses that are not RAM."""
        self.system.memory.add_device(name, gpa, size, device)
        if device not in self.devices:
            self.devices.append(device)

    def irq_line(self, number: int) -> IrqLine:
        """A line into the in-kernel irqchip; without one it ends nowhere."""

        def line(level: int) -> None:
            state = self.system.kvm
            if state is not None and state.irqchip:
                state.vm.irq_line(number, level)

        return line

    def _sink(self, sink: Sink | None, kept: bytearray) -> Sink:
        return kept.extend if sink is None else sink

    def _request_reset(self) -> None:
        self.system.request_stop(ending(Stop.RESET))

    def _debug_exit(self, value: int) -> None:
        self.system.request_stop(debug_exit(value))

    # -- loading -----------------------------------------------------------------------------------

    def load(self, source: Source) -> Image:
        """Place an image and get the vCPU ready at its entry. Replaces what was loaded before.

        `source` is a file's name, bytes (flat or ELF), a listing's text, or a placed Image.
        InputError: one line that names the image, and the line of a listing.
        """
        image = load_image(source, self.config)
        memory = self.config.memory or image.memory or DEFAULT_MEMORY
        image.check(memory)
        self._unplug()
        self.image = image
        self.cmos.store_memory_size(memory)
        self._plug(image, memory)
        return image

    def _plug(self, image: Image, memory: int) -> None:
        """Make the VM and its vCPU, fill the memory, set the registers."""
        self.ram = ram = Ram(memory)
        self.system.memory.add_ram("RAM", 0, ram.view)
        irqchip = self.config.irqchip if self.config.irqchip is not None else image.irqchip
        self.system.kvm = kvm_init(self._open_kvm(), bool(irqchip))
        kvm_set_phys_mem(self.system.kvm, ram)
        for part in image.segments:
            ram.write(part.gpa, part.code)
        cpu = CPUState(self.system)
        qemu_init_vcpu(cpu)
        self._raise_failure()
        assert cpu.vcpu is not None
        state = start_state(image, ram.size, ram.write, cpu.vcpu.get_sregs())
        cpu.regs, cpu.sregs, cpu.vcpu_dirty = state.regs, state.sregs, True
        self._limit_exits(cpu)
        for device in self.devices:
            device.reset()

    def _open_kvm(self) -> accel.Kvm:
        if self._kvm is None:
            from vmxsim.kvm.api import Kvm

            self._kvm = Kvm(self.clock, self.probes)
        return self._kvm

    def _limit_exits(self, cpu: CPUState) -> None:
        if self.config.max_exits is None:
            return
        self._limit = ExitLimit(self.system, self.config.max_exits)
        if self._probed:
            self.probes.add(self._limit)
        elif cpu.run is not None:
            cpu.run = self._limit.counting(cpu.run)

    def _remove_limit(self) -> None:
        if self._limit is not None:
            self.probes.remove(self._limit)
            self._limit = None

    # -- running -----------------------------------------------------------------------------------

    def run(self) -> RunResult:
        """Run until the guest ends, or time or exits are up; then the guest is paused.

        Running on is possible after TIMEOUT, MAX_EXITS and IDLE; a guest that ended stays ended
        until `reset` or `load`. What a vCPU's thread raised (UnclaimedAccess, EngineError) is
        raised here.
        """
        self._need_image()
        self.system.attended = True
        try:
            if self._idle():
                self.system.ending = ending(Stop.IDLE)
            else:
                self.start()
                self._wait(self.config.timeout_s)
        finally:
            self.system.attended = False
            self.pause()
        return self.result()

    def start(self) -> None:
        """Let the guest run and come back at once. See `wait`."""
        self._need_image()
        why = self.system.ending
        if why is not None and why.final:
            return
        if self._limit is not None:
            self._limit.left = self._limit.limit
        vm_start(self.system)

    def wait(self, timeout_s: float | None = None) -> RunResult | None:
        """Wait until a started guest ends; None when it goes on after that many seconds."""
        self._need_image()
        if not self._wait_until_ended(timeout_s):
            return None
        pause_all_vcpus(self.system)
        return self.result()

    def _wait(self, timeout_s: float | None) -> None:
        if not self._wait_until_ended(timeout_s):
            self.system.request_stop(ending(Stop.TIMEOUT, f"after {timeout_s:g} s"))

    def _wait_until_ended(self, timeout_s: float | None) -> bool:
        system, ended = self.system, False
        left = float("inf") if timeout_s is None else timeout_s
        with system.bql:
            while not ended and left > 0:
                slice_s = min(WAIT_S, left)
                ended = system.pause_cond.wait_for(lambda: system.ending is not None, slice_s)
                left -= slice_s
        return ended

    def _idle(self) -> bool:
        cpus = self.system.cpus
        return all(cpu.halted and not cpu.interrupts for cpu in cpus)

    def result(self) -> RunResult:
        """How the run ended, with the registers; of a guest that goes on, how it stands now."""
        self._raise_failure()
        why = self.system.ending or ending(Stop.STOPPED, "paused")
        regs, sregs = self.registers()
        return RunResult(why.stop, why.status, why.detail, regs, sregs)

    def registers(self, index: int = 0) -> tuple[KvmRegs, KvmSregs]:
        """A vCPU's registers, between two of its instructions. From any thread."""
        self._need_image()
        cpu = self.system.cpus[index]
        run_on_cpu(cpu, lambda: kvm_arch_get_registers(cpu))
        assert cpu.regs is not None
        assert cpu.sregs is not None
        return cpu.regs, cpu.sregs

    def pause(self) -> None:
        """Get the guest out of its next instruction, and keep it out."""
        pause_all_vcpus(self.system)

    def resume(self) -> None:
        """Go on after `pause`."""
        self.start()

    def kick(self) -> None:
        """Make every vCPU leave the guest once; it goes on by itself."""
        for cpu in self.system.cpus:
            qemu_cpu_kick(cpu)

    def reset(self) -> None:
        """Power off and on: memory, devices and processor as `load` left them.

        The clock goes on. A guest that was running runs again.
        """
        image, ram = self._need_image()
        running = self.system.ending is None and not all(cpu.stopped for cpu in self.system.cpus)
        self._unplug()
        self._plug(image, ram.size)
        if running:
            self.start()

    def shutdown(self) -> None:
        """Press the power button: end the run, from any thread."""
        self.system.request_stop(ending(Stop.SHUTDOWN, "from outside"))

    def close(self) -> None:
        """End the threads and give everything back. A closed machine can load again."""
        self._unplug()

    def _unplug(self) -> None:
        self.pause()
        qemu_destroy_vcpus(self.system)
        self._remove_limit()
        state, self.system.kvm = self.system.kvm, None
        if state is not None:
            state.vm.close()
            self.system.memory.remove("RAM")
        self.system.ending = self.system.failure = None

    def __enter__(self) -> Machine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self.close()

    def _need_image(self) -> tuple[Image, Ram]:
        if self.image is None or self.ram is None or self.system.kvm is None:
            raise ConfigError("nothing is loaded: call load() first")
        return self.image, self.ram

    def _raise_failure(self) -> None:
        if self.system.failure is not None:
            raise self.system.failure

    @property
    def vcpus(self) -> list[accel.Vcpu]:
        """The vCPUs of the loaded machine, as KVM gave them."""
        return [cpu.vcpu for cpu in self.system.cpus if cpu.vcpu is not None]

    # -- the world outside -------------------------------------------------------------------------

    def serial_input(self, data: bytes) -> None:
        """Type on the serial line, from any thread. Nothing is lost: what has no room waits."""
        with self.system.bql:
            self.serial.receive(data)

    def interrupt(self, vector: int, index: int = 0) -> None:
        """Inject an interrupt when the guest can take it (KVM_INTERRUPT); not with an irqchip."""
        if not 0 <= vector <= 255:
            raise ConfigError(f"vector {vector}: it is 0 to 255")
        self._need_image()
        if self.system.kvm is not None and self.system.kvm.irqchip:
            raise ConfigError("this machine has an irqchip: raise one of its lines, irq_line(n)(1)")
        with self.system.bql:
            cpu = self.system.cpus[index]
            cpu.interrupts.append(vector)
            cpu.kick()

    def read_memory(self, gpa: int, size: int) -> bytes:
        """Bytes of the guest's RAM."""
        return self._need_image()[1].read(gpa, size)

    def write_memory(self, gpa: int, data: bytes) -> None:
        """Write the guest's RAM, code included, as a debugger or a disk would."""
        self._need_image()[1].write(gpa, data)
        self.kick()
