"""Floor 5, userspace: what QEMU does; sees kvm.api and kvm.uapi and nothing else of kvm."""
