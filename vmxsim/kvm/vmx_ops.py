"""VMREAD and VMWRITE under Linux's names: a field that cannot be accessed is a bug, not a value.

Linux: arch/x86/kvm/vmx.c (newer: vmx/vmx_ops.h), where vmread_error and vmwrite_error warn.
"""

from __future__ import annotations

from vmxsim.arch.vmcs_fields import VmcsField
from vmxsim.errors import EngineError
from vmxsim.kvm.kvm_host import KvmVcpu
from vmxsim.vmx.records import VmFail


def vmcs_readl(vcpu: KvmVcpu, field: int) -> int:
    """A field of the vCPU's VMCS, which must be the current one."""
    value = vcpu.processor.vmread(field)
    if isinstance(value, VmFail):
        raise EngineError(f"vmread of {VmcsField(field).name} failed: {value.message}")
    return value


def vmcs_writel(vcpu: KvmVcpu, field: int, value: int) -> None:
    """Change a field of the vCPU's VMCS, which must be the current one."""
    failed = vcpu.processor.vmwrite(field, value)
    if failed is not None:
        raise EngineError(f"vmwrite of {VmcsField(field).name} failed: {failed.message}")
