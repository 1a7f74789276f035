"""Floor 1, facts: what the manual says; no state, no engine."""
