"""vmxsim: x86 virtualization, instruction by instruction, in user space."""
