"""Devices: each told an offset, a size, a clock and an interrupt line, and nothing else."""
