"""Tests of floor 4: a Processor that replays VM exits stands below."""
