"""What README shows is what happens: its commands and snippets are run, its tables compared.

In a ``console`` block every line after ``$ vmxsim ..`` is what the command prints (stdout, then
stderr, as a terminal shows them); ``...`` stands for anything, and host times are not compared. A
``python`` block is run as a program, its tests are called, and a ``text`` block right after it is
what it prints.
"""

from __future__ import annotations

import doctest
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
HOST_TIME = re.compile(r"\d+\.\d\d(us|%)")
CALL_TESTS = """
for name, test in list(globals().items()):
    if name.startswith("test_"):
        test()
"""
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A fenced block: where it begins, its language, its text, what follows it at once."""

    line: int
    language: str
    text: str
    after: str


def blocks(language: str) -> list[Block]:
    found = list(FENCE.finditer(README))
    answers = {}
    for first, second in zip(found, found[1:], strict=False):
        if second[1] == "text" and not README[first.end() : second.start()].strip():
            answers[first] = second[2]
    return [
        Block(README[: match.start()].count("\n") + 1, language, match[2], answers.get(match, ""))
        for match in found
        if match[1] == language
    ]


def commands() -> list[tuple[str, str]]:
    """Each ``$ vmxsim ..`` with the lines below it."""
    pairs = []
    for block in blocks("console"):
        for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            if command.startswith("vmxsim"):
                pairs.append((command, output))
    return pairs


def run(words: list[str]) -> str:
    done = subprocess.run(
        words, cwd=ROOT, capture_output=True, text=True, check=False, timeout=100,
        stdin=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    return done.stdout + done.stderr


def masked(line: str) -> str:
    """The line without what the host's speed decides."""
    if HOST_TIME.search(line):
        return " ".join(HOST_TIME.sub("#", line).split())
    return line.rstrip()


def same(expected: str, got: str) -> None:
    """Equal, host times aside, with ``...`` in the expectation standing for anything."""
    tidy_expected, tidy_got = (
        "\n".join(masked(line) for line in text.strip().splitlines()) + "\n"
        for text in (expected, got)
    )
    matches = doctest.OutputChecker().check_output(tidy_expected, tidy_got, doctest.ELLIPSIS)
    assert matches, f"README shows\n{tidy_expected}\nbut this is printed\n{tidy_got}"


@pytest.mark.parametrize(("command", "output"), commands(), ids=[c for c, _ in commands()])
def test_a_command_prints_what_readme_shows(command: str, output: str) -> None:
    words = shlex.split(command)
    same(output, run([sys.executable, "-m", "vmxsim", *words[1:]]))


@pytest.mark.parametrize("block", blocks("python"), ids=lambda block: f"line-{block.line}")
def test_a_snippet_runs_and_prints_what_readme_shows(block: Block) -> None:
    same(block.after, run([sys.executable, "-W", "error", "-c", block.text + CALL_TESTS]))


def test_there_is_something_to_run() -> None:
    assert len(commands()) >= 3
    assert blocks("python")


def test_the_excuses_are_the_tables() -> None:
    from vmxsim.arch.exit_reasons import NOT_MODELLED

    rows = re.findall(r"^\| (\d+) \| `(\w+)` \| (.+) \|$", README, re.MULTILINE)
    expected = [(str(int(reason)), reason.name, why) for reason, why in NOT_MODELLED.items()]
    assert rows == sorted(expected, key=lambda row: int(row[0]))


def test_every_path_it_names_exists() -> None:
    named = re.findall(r"\]\(([^)#:]+)(?:#\w+)?\)", README)
    assert named
    missing = [path for path in named if not (ROOT / path).exists()]
    assert missing == []
