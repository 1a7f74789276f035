"""Floor 3, silicon: VMX operation as the Intel SDM describes it."""
