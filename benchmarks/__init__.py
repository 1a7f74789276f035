"""What an exit costs and what the engine sustains, as ratios measured within one run."""
