"""Floor 4, kernel: KVM, file by file where Linux has it."""
