"""Floor 6, tools: watch, count, drive, test."""
