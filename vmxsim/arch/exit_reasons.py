"""Why guests leave: one row per basic exit reason, from which every other table is derived.

Numbers are the SDM's (Vol. 3, appendix "VMX Basic Exit Reasons"), names are those of Linux's
VMX_EXIT_REASONS where it has one. Numbers 35, 38, 42, 71, 82 and 83 are reserved.
"""

# One row, one line.
# ruff: noqa: E501

from __future__ import annotations

from enum import Enum, IntEnum
from typing import NamedTuple

FAILED_VMENTRY = 1 << 31
"""Bit of the exit reason field: the guest never ran, VM entry failed after the first checks."""


class When(Enum):
    """What makes the exit happen: nothing but the instruction, a control, or an event."""

    ALWAYS = "always"
    EVENT = "when the event happens"
    ENTRY = "when VM entry finds the guest state unusable"
    EXCEPTION_BITMAP = "the vector's bit in the exception bitmap; NMIs: NMI exiting"
    EXTERNAL_INTERRUPT_EXITING = "external-interrupt exiting"
    INTERRUPT_WINDOW_EXITING = "interrupt-window exiting"
    NMI_WINDOW_EXITING = "NMI-window exiting"
    HLT_EXITING = "HLT exiting"
    INVLPG_EXITING = "INVLPG exiting"
    MWAIT_EXITING = "MWAIT exiting"
    RDPMC_EXITING = "RDPMC exiting"
    RDTSC_EXITING = "RDTSC exiting"
    CR_EXITING = (
        "CR0 and CR4: a masked bit would differ from its read shadow; CR3: CR3-load exiting and"
        " CR3-store exiting; CR8: CR8-load exiting and CR8-store exiting"
    )
    MOV_DR_EXITING = "MOV-DR exiting"
    IO_EXITING = "unconditional I/O exiting, or the port's bit with use I/O bitmaps"
    MSR_EXITING = "always, unless use MSR bitmaps is 1 and the MSR's bit is 0"
    MONITOR_TRAP_FLAG = "monitor trap flag"
    MONITOR_EXITING = "MONITOR exiting"
    PAUSE_EXITING = "PAUSE exiting, or PAUSE-loop exiting at CPL 0"
    USE_TPR_SHADOW = "use TPR shadow"
    VIRTUALIZE_APIC_ACCESSES = "virtualize APIC accesses"
    VIRTUAL_INTERRUPT_DELIVERY = "virtual-interrupt delivery"
    APIC_REGISTER_VIRTUALIZATION = "APIC-register virtualization or virtual-interrupt delivery"
    DESCRIPTOR_TABLE_EXITING = "descriptor-table exiting"
    ENABLE_EPT = "enable EPT"
    RDTSCP_EXITING = "RDTSC exiting, with enable RDTSCP (without it: #UD)"
    PREEMPTION_TIMER = "activate VMX-preemption timer"
    WBINVD_EXITING = "WBINVD exiting"
    RDRAND_EXITING = "RDRAND exiting"
    INVPCID_EXITING = "INVLPG exiting, with enable INVPCID (without it: #UD)"
    VM_FUNCTIONS = "enable VM functions, with EAX not naming an enabled function"
    ENCLS_EXITING = "enable ENCLS exiting, and the leaf's bit in the ENCLS-exiting bitmap"
    RDSEED_EXITING = "RDSEED exiting"
    ENABLE_PML = "enable PML"
    XSS_BITMAP = "enable XSAVES/XRSTORS, and a bit of the XSS-exiting bitmap"
    PCONFIG_BITMAP = "enable PCONFIG, and the leaf's bit in the PCONFIG-exiting bitmap"
    SUB_PAGE_PERMISSIONS = "sub-page write permissions for EPT"
    USER_WAIT = "RDTSC exiting, with enable user wait and pause (without it: #UD)"
    LOADIWKEY_EXITING = "LOADIWKEY exiting"
    ENCLV_EXITING = "enable ENCLV exiting, and the leaf's bit in the ENCLV-exiting bitmap"
    PASID_TRANSLATION = "PASID translation"
    BUS_LOCK_DETECTION = "VMM bus-lock detection"
    INSTRUCTION_TIMEOUT = "instruction timeout"
    ENABLE_MSR_LIST = "enable MSR-list instructions, and the MSR's bit in the MSR bitmaps"


class ExitReason(IntEnum):
    """Basic exit reasons, each with its cause, a plain sentence, and whether it is trap-like.

    Trap-like exits come after the instruction that caused them; all others before.
    """

    when: When
    summary: str
    trap_like: bool

    def __new__(cls, number: int, when: When, summary: str, trap_like: bool = False) -> ExitReason:
        """One row."""
        self = int.__new__(cls, number)
        self._value_ = number
        self.when, self.summary, self.trap_like = when, summary, trap_like
        return self

    # fmt: off
    EXCEPTION_NMI       = (0,  When.EXCEPTION_BITMAP, "The guest raised an exception that the hypervisor wants to see, or an NMI arrived.")
    EXTERNAL_INTERRUPT  = (1,  When.EXTERNAL_INTERRUPT_EXITING, "A device interrupted the host while the guest was running.")
    TRIPLE_FAULT        = (2,  When.ALWAYS, "The guest faulted while a double fault was being delivered; a real machine would reset.")
    INIT_SIGNAL         = (3,  When.EVENT, "Another processor sent INIT.")
    SIPI_SIGNAL         = (4,  When.EVENT, "A start-up IPI arrived while the guest was waiting for one.")
    IO_SMI              = (5,  When.EVENT, "A system-management interrupt arrived right after an I/O instruction.")
    OTHER_SMI           = (6,  When.EVENT, "A system-management interrupt arrived, not after an I/O instruction.")
    INTERRUPT_WINDOW    = (7,  When.INTERRUPT_WINDOW_EXITING, "The guest can take an interrupt now: IF is 1 and nothing blocks it.")
    NMI_WINDOW          = (8,  When.NMI_WINDOW_EXITING, "The guest can take an NMI now.")
    TASK_SWITCH         = (9,  When.ALWAYS, "The guest switched tasks by hardware: far jump, far call, IRET or gate to a TSS.")
    CPUID               = (10, When.ALWAYS, "The guest executed CPUID.")
    GETSEC              = (11, When.ALWAYS, "The guest executed GETSEC, the instruction of safer mode extensions.")
    HLT                 = (12, When.HLT_EXITING, "The guest executed HLT: it has nothing to do until an interrupt.")
    INVD                = (13, When.ALWAYS, "The guest executed INVD: drop the caches without writing them back.")
    INVLPG              = (14, When.INVLPG_EXITING, "The guest executed INVLPG: forget the translation of one page.")
    RDPMC               = (15, When.RDPMC_EXITING, "The guest executed RDPMC: read a performance counter.")
    RDTSC               = (16, When.RDTSC_EXITING, "The guest executed RDTSC: read the time-stamp counter.")
    RSM                 = (17, When.ALWAYS, "The guest executed RSM in system-management mode.")
    VMCALL              = (18, When.ALWAYS, "The guest executed VMCALL: a call to its hypervisor.")
    VMCLEAR             = (19, When.ALWAYS, "The guest executed VMCLEAR; it is a hypervisor itself.")
    VMLAUNCH            = (20, When.ALWAYS, "The guest executed VMLAUNCH; it is a hypervisor itself.")
    VMPTRLD             = (21, When.ALWAYS, "The guest executed VMPTRLD; it is a hypervisor itself.")
    VMPTRST             = (22, When.ALWAYS, "The guest executed VMPTRST; it is a hypervisor itself.")
    VMREAD              = (23, When.ALWAYS, "The guest executed VMREAD; it is a hypervisor itself.")
    VMRESUME            = (24, When.ALWAYS, "The guest executed VMRESUME; it is a hypervisor itself.")
    VMWRITE             = (25, When.ALWAYS, "The guest executed VMWRITE; it is a hypervisor itself.")
    VMOFF               = (26, When.ALWAYS, "The guest executed VMXOFF; it is a hypervisor itself.")
    VMON                = (27, When.ALWAYS, "The guest executed VMXON; it wants to be a hypervisor itself.")
    CR_ACCESS           = (28, When.CR_EXITING, "The guest read or wrote a control register: MOV CR, CLTS or LMSW.")
    DR_ACCESS           = (29, When.MOV_DR_EXITING, "The guest read or wrote a debug register.")
    IO_INSTRUCTION      = (30, When.IO_EXITING, "The guest executed IN, OUT, INS or OUTS.")
    MSR_READ            = (31, When.MSR_EXITING, "The guest executed RDMSR.")
    MSR_WRITE           = (32, When.MSR_EXITING, "The guest executed WRMSR.")
    INVALID_STATE       = (33, When.ENTRY, "VM entry failed: the guest state breaks a rule.")
    MSR_LOAD_FAIL       = (34, When.ENTRY, "VM entry failed: an MSR of the VM-entry MSR-load area could not be loaded.")
    MWAIT_INSTRUCTION   = (36, When.MWAIT_EXITING, "The guest executed MWAIT: sleep until a monitored line is written.")
    MONITOR_TRAP_FLAG   = (37, When.MONITOR_TRAP_FLAG, "The guest completed one instruction; the hypervisor is single-stepping it.")
    MONITOR_INSTRUCTION = (39, When.MONITOR_EXITING, "The guest executed MONITOR: name the line that MWAIT will watch.")
    PAUSE_INSTRUCTION   = (40, When.PAUSE_EXITING, "The guest executed PAUSE: it is spinning on a lock.")
    MCE_DURING_VMENTRY  = (41, When.ENTRY, "VM entry failed: a machine check happened during it.")
    TPR_BELOW_THRESHOLD = (43, When.USE_TPR_SHADOW, "The guest lowered its task priority below the TPR threshold.", True)
    APIC_ACCESS         = (44, When.VIRTUALIZE_APIC_ACCESSES, "The guest touched the page of its local APIC.")
    EOI_INDUCED         = (45, When.VIRTUAL_INTERRUPT_DELIVERY, "The guest ended an interrupt whose bit is set in the EOI-exit bitmap.", True)
    GDTR_IDTR           = (46, When.DESCRIPTOR_TABLE_EXITING, "The guest executed LGDT, LIDT, SGDT or SIDT.")
    LDTR_TR             = (47, When.DESCRIPTOR_TABLE_EXITING, "The guest executed LLDT, LTR, SLDT or STR.")
    EPT_VIOLATION       = (48, When.ENABLE_EPT, "The guest touched guest-physical memory in a way the EPT does not allow: often a device's registers.")
    EPT_MISCONFIG       = (49, When.ENABLE_EPT, "The hypervisor's EPT has an entry with an unsupported value.")
    INVEPT              = (50, When.ALWAYS, "The guest executed INVEPT; it is a hypervisor itself.")
    RDTSCP              = (51, When.RDTSCP_EXITING, "The guest executed RDTSCP: read the time-stamp counter and the processor's number.")
    PREEMPTION_TIMER    = (52, When.PREEMPTION_TIMER, "The time slice that the hypervisor gave the guest is over.")
    INVVPID             = (53, When.ALWAYS, "The guest executed INVVPID; it is a hypervisor itself.")
    WBINVD              = (54, When.WBINVD_EXITING, "The guest executed WBINVD or WBNOINVD: write the caches back.")
    XSETBV              = (55, When.ALWAYS, "The guest executed XSETBV: choose which register states XSAVE manages.")
    APIC_WRITE          = (56, When.APIC_REGISTER_VIRTUALIZATION, "The guest wrote a local APIC register that the processor virtualizes only in part.", True)
    RDRAND              = (57, When.RDRAND_EXITING, "The guest executed RDRAND: a random number.")
    INVPCID             = (58, When.INVPCID_EXITING, "The guest executed INVPCID: forget translations of an address space.")
    VMFUNC              = (59, When.VM_FUNCTIONS, "The guest executed VMFUNC with a function that is not enabled.")
    ENCLS               = (60, When.ENCLS_EXITING, "The guest executed ENCLS: manage SGX enclaves.")
    RDSEED              = (61, When.RDSEED_EXITING, "The guest executed RDSEED: a random seed.")
    PML_FULL            = (62, When.ENABLE_PML, "The page-modification log is full.")
    XSAVES              = (63, When.XSS_BITMAP, "The guest executed XSAVES for state that the hypervisor wants to see.")
    XRSTORS             = (64, When.XSS_BITMAP, "The guest executed XRSTORS for state that the hypervisor wants to see.")
    PCONFIG             = (65, When.PCONFIG_BITMAP, "The guest executed PCONFIG: program a platform feature such as memory encryption.")
    SPP                 = (66, When.SUB_PAGE_PERMISSIONS, "A write met a missing or misconfigured sub-page permission table.")
    UMWAIT              = (67, When.USER_WAIT, "The guest executed UMWAIT: user code waits for a monitored line.")
    TPAUSE              = (68, When.USER_WAIT, "The guest executed TPAUSE: user code waits for a moment.")
    LOADIWKEY           = (69, When.LOADIWKEY_EXITING, "The guest executed LOADIWKEY: load the Key Locker's wrapping key.")
    ENCLV               = (70, When.ENCLV_EXITING, "The guest executed ENCLV: an SGX leaf for virtualization.")
    ENQCMD_PASID        = (72, When.PASID_TRANSLATION, "ENQCMD met a PASID that could not be translated.")
    ENQCMDS_PASID       = (73, When.PASID_TRANSLATION, "ENQCMDS met a PASID that could not be translated.")
    BUS_LOCK            = (74, When.BUS_LOCK_DETECTION, "The guest locked the whole bus.", True)
    NOTIFY              = (75, When.INSTRUCTION_TIMEOUT, "The guest kept the processor from any instruction boundary for too long.")
    SEAMCALL            = (76, When.ALWAYS, "The guest executed SEAMCALL: call the TDX module.")
    TDCALL              = (77, When.ALWAYS, "The guest executed TDCALL: a trust domain calls the TDX module.")
    RDMSRLIST           = (78, When.ENABLE_MSR_LIST, "The guest executed RDMSRLIST: read many MSRs.")
    WRMSRLIST           = (79, When.ENABLE_MSR_LIST, "The guest executed WRMSRLIST: write many MSRs.")
    URDMSR              = (80, When.MSR_EXITING, "Guest user code executed URDMSR.")
    UWRMSR              = (81, When.MSR_EXITING, "Guest user code executed UWRMSR.")
    MSR_READ_IMM        = (84, When.MSR_EXITING, "The guest executed RDMSR with the index as an immediate.")
    MSR_WRITE_IMM       = (85, When.MSR_EXITING, "The guest executed WRMSRNS with the index as an immediate.")
    # fmt: on


# fmt: off
NOT_MODELLED: dict[ExitReason, str] = {
    ExitReason.INIT_SIGNAL: "one processor and no local APIC yet: nobody sends INIT",
    ExitReason.SIPI_SIGNAL: "one processor and no local APIC yet: nobody sends a start-up IPI",
    ExitReason.IO_SMI: "no system-management mode",
    ExitReason.OTHER_SMI: "no system-management mode",
    ExitReason.NMI_WINDOW: "no source of NMIs yet: NMI exiting, virtual NMIs and NMI-window exiting are reported as not allowed",
    ExitReason.TASK_SWITCH: "the engine switches tasks for JMP, CALL and IRET by itself; a task gate in the IDT gives #GP",
    ExitReason.RSM: "no system-management mode: RSM raises #UD",
    ExitReason.MONITOR_TRAP_FLAG: "monitor trap flag is reported as not allowed",
    ExitReason.MCE_DURING_VMENTRY: "no machine checks happen here",
    ExitReason.TPR_BELOW_THRESHOLD: "no TPR shadow: the control is reported as not allowed",
    ExitReason.APIC_ACCESS: "virtualize APIC accesses is reported as not allowed",
    ExitReason.EOI_INDUCED: "virtual-interrupt delivery is reported as not allowed",
    ExitReason.EPT_MISCONFIG: "memory slots stand in for EPT entries, and a slot cannot be misconfigured",
    ExitReason.PREEMPTION_TIMER: "activate VMX-preemption timer is reported as not allowed",
    ExitReason.APIC_WRITE: "APIC-register virtualization is reported as not allowed",
    ExitReason.ENCLS: "no SGX: ENCLS raises #UD",
    ExitReason.PML_FULL: "enable PML is reported as not allowed",
    ExitReason.XSAVES: "IA32_XSS supports no state, so no bit of the XSS-exiting bitmap can match",
    ExitReason.XRSTORS: "IA32_XSS supports no state, so no bit of the XSS-exiting bitmap can match",
    ExitReason.PCONFIG: "no PCONFIG: the instruction raises #UD",
    ExitReason.SPP: "sub-page write permissions are reported as not allowed",
    ExitReason.UMWAIT: "enable user wait and pause is reported as not allowed: UMWAIT raises #UD",
    ExitReason.TPAUSE: "enable user wait and pause is reported as not allowed: TPAUSE raises #UD",
    ExitReason.LOADIWKEY: "no Key Locker: LOADIWKEY raises #UD",
    ExitReason.ENCLV: "no SGX: ENCLV raises #UD",
    ExitReason.ENQCMD_PASID: "no ENQCMD: the instruction raises #UD",
    ExitReason.ENQCMDS_PASID: "no ENQCMDS: the instruction raises #UD",
    ExitReason.BUS_LOCK: "VMM bus-lock detection is reported as not allowed",
    ExitReason.NOTIFY: "instruction timeout is reported as not allowed",
    ExitReason.SEAMCALL: "no SEAM: SEAMCALL raises #UD",
    ExitReason.TDCALL: "no TDX: TDCALL raises #UD",
    ExitReason.RDMSRLIST: "enable MSR-list instructions is reported as not allowed: RDMSRLIST raises #UD",
    ExitReason.WRMSRLIST: "enable MSR-list instructions is reported as not allowed: WRMSRLIST raises #UD",
    ExitReason.URDMSR: "no user MSR instructions: URDMSR raises #UD",
    ExitReason.UWRMSR: "no user MSR instructions: UWRMSR raises #UD",
    ExitReason.MSR_READ_IMM: "no immediate form of RDMSR: it raises #UD",
    ExitReason.MSR_WRITE_IMM: "no immediate form of WRMSRNS: it raises #UD",
}
"""Reasons that no run produces, and why. Everything else has a handler."""
# fmt: on


class Dialect(NamedTuple):
    """What others call the same exit; empty where they have no name for it."""

    hvf: str = ""
    """macOS Hypervisor framework, without its VMX_REASON_ prefix."""
    whpx: str = ""
    """Windows Hypervisor Platform, without its WHvRunVpExitReason prefix."""
    kvm_exit: str = ""
    """Linux: what userspace sees when the kernel does not finish the exit by itself."""


# fmt: off
DIALECTS: dict[ExitReason, Dialect] = {
    ExitReason.EXCEPTION_NMI:       Dialect("EXC_NMI", "Exception", "KVM_EXIT_DEBUG"),
    ExitReason.EXTERNAL_INTERRUPT:  Dialect("IRQ", "Canceled", "KVM_EXIT_INTR"),
    ExitReason.TRIPLE_FAULT:        Dialect("TRIPLE_FAULT", "UnrecoverableException", "KVM_EXIT_SHUTDOWN"),
    ExitReason.INIT_SIGNAL:         Dialect("INIT"),
    ExitReason.SIPI_SIGNAL:         Dialect("SIPI", "X64ApicInitSipiTrap"),
    ExitReason.IO_SMI:              Dialect("IO_SMI"),
    ExitReason.OTHER_SMI:           Dialect("OTHER_SMI"),
    ExitReason.INTERRUPT_WINDOW:    Dialect("IRQ_WND", "X64InterruptWindow", "KVM_EXIT_IRQ_WINDOW_OPEN"),
    ExitReason.NMI_WINDOW:          Dialect("VIRTUAL_NMI_WND"),
    ExitReason.TASK_SWITCH:         Dialect("TASK", "", "KVM_EXIT_INTERNAL_ERROR"),
    ExitReason.CPUID:               Dialect("CPUID", "X64Cpuid"),
    ExitReason.GETSEC:              Dialect("GETSEC"),
    ExitReason.HLT:                 Dialect("HLT", "X64Halt", "KVM_EXIT_HLT"),
    ExitReason.INVD:                Dialect("INVD"),
    ExitReason.INVLPG:              Dialect("INVLPG"),
    ExitReason.RDPMC:               Dialect("RDPMC"),
    ExitReason.RDTSC:               Dialect("RDTSC", "X64Rdtsc"),
    ExitReason.RSM:                 Dialect("RSM"),
    ExitReason.VMCALL:              Dialect("VMCALL", "Hypercall", "KVM_EXIT_HYPERCALL"),
    ExitReason.VMCLEAR:             Dialect("VMCLEAR"),
    ExitReason.VMLAUNCH:            Dialect("VMLAUNCH"),
    ExitReason.VMPTRLD:             Dialect("VMPTRLD"),
    ExitReason.VMPTRST:             Dialect("VMPTRST"),
    ExitReason.VMREAD:              Dialect("VMREAD"),
    ExitReason.VMRESUME:            Dialect("VMRESUME"),
    ExitReason.VMWRITE:             Dialect("VMWRITE"),
    ExitReason.VMOFF:               Dialect("VMOFF"),
    ExitReason.VMON:                Dialect("VMON"),
    ExitReason.CR_ACCESS:           Dialect("MOV_CR", "", "KVM_EXIT_SET_TPR"),
    ExitReason.DR_ACCESS:           Dialect("MOV_DR", "", "KVM_EXIT_DEBUG"),
    ExitReason.IO_INSTRUCTION:      Dialect("IO", "X64IoPortAccess", "KVM_EXIT_IO"),
    ExitReason.MSR_READ:            Dialect("RDMSR", "X64MsrAccess", "KVM_EXIT_X86_RDMSR"),
    ExitReason.MSR_WRITE:           Dialect("WRMSR", "X64MsrAccess", "KVM_EXIT_X86_WRMSR"),
    ExitReason.INVALID_STATE:       Dialect("VMENTRY_GUEST", "InvalidVpRegisterValue", "KVM_EXIT_FAIL_ENTRY"),
    ExitReason.MSR_LOAD_FAIL:       Dialect("VMENTRY_MSR", "", "KVM_EXIT_FAIL_ENTRY"),
    ExitReason.MWAIT_INSTRUCTION:   Dialect("MWAIT"),
    ExitReason.MONITOR_TRAP_FLAG:   Dialect("MTF"),
    ExitReason.MONITOR_INSTRUCTION: Dialect("MONITOR"),
    ExitReason.PAUSE_INSTRUCTION:   Dialect("PAUSE"),
    ExitReason.MCE_DURING_VMENTRY:  Dialect("VMENTRY_MC", "", "KVM_EXIT_FAIL_ENTRY"),
    ExitReason.TPR_BELOW_THRESHOLD: Dialect("TPR_THRESHOLD"),
    ExitReason.APIC_ACCESS:         Dialect("APIC_ACCESS", "", "KVM_EXIT_TPR_ACCESS"),
    ExitReason.EOI_INDUCED:         Dialect("VIRTUALIZED_EOI", "X64ApicEoi", "KVM_EXIT_IOAPIC_EOI"),
    ExitReason.GDTR_IDTR:           Dialect("GDTR_IDTR"),
    ExitReason.LDTR_TR:             Dialect("LDTR_TR"),
    ExitReason.EPT_VIOLATION:       Dialect("EPT_VIOLATION", "MemoryAccess", "KVM_EXIT_MMIO"),
    ExitReason.EPT_MISCONFIG:       Dialect("EPT_MISCONFIG", "MemoryAccess", "KVM_EXIT_MMIO"),
    ExitReason.INVEPT:              Dialect("EPT_INVEPT"),
    ExitReason.RDTSCP:              Dialect("RDTSCP", "X64Rdtsc"),
    ExitReason.PREEMPTION_TIMER:    Dialect("VMX_TIMER_EXPIRED"),
    ExitReason.INVVPID:             Dialect("INVVPID"),
    ExitReason.WBINVD:              Dialect("WBINVD"),
    ExitReason.XSETBV:              Dialect("XSETBV"),
    ExitReason.APIC_WRITE:          Dialect("APIC_WRITE", "X64ApicWriteTrap"),
    ExitReason.RDRAND:              Dialect("RDRAND"),
    ExitReason.INVPCID:             Dialect("INVPCID"),
    ExitReason.VMFUNC:              Dialect("VMFUNC"),
    ExitReason.RDSEED:              Dialect("RDSEED"),
    ExitReason.XSAVES:              Dialect("XSAVES"),
    ExitReason.XRSTORS:             Dialect("XRSTORS"),
    ExitReason.BUS_LOCK:            Dialect("", "", "KVM_EXIT_X86_BUS_LOCK"),
    ExitReason.NOTIFY:              Dialect("", "", "KVM_EXIT_NOTIFY"),
    ExitReason.TDCALL:              Dialect("", "", "KVM_EXIT_TDX"),
}
"""One exit in the words of other platforms; reasons without a row have a name only here."""
# fmt: on
