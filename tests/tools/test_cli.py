from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from vmxsim.tools import cli

ROOT = Path(__file__).resolve().parents[2]
HELLO = str(ROOT / "fixtures/programs/hello.lst")

# ---- numbers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (cli.number, "4096", 4096),
        (cli.number, "0x1000", 4096),
        (cli.number, "0", 0),
        (cli.address, "0xffffffffffffffff", (1 << 64) - 1),
        (cli.count, "1", 1),
        (cli.size, "64M", 64 << 20),
        (cli.size, "512k", 512 << 10),
        (cli.size, "1G", 1 << 30),
        (cli.size, "8192", 8192),
        (cli.size, "0x2000", 8192),
        (cli.seconds, "0.5", 0.5),
        (cli.seconds, "10", 10.0),
    ],
)
def test_a_good_number(parse: Callable[[str], float], text: str, value: float) -> None:
    assert parse(text) == value


@pytest.mark.parametrize(
    ("parse", "text", "message"),
    [
        (cli.number, "0x", "'0x' is not a number: write it as 4096 or 0x1000"),
        (cli.number, "", "'' is not a number"),
        (cli.number, "12q", "'12q' is not a number"),
        (cli.number, "-1", "'-1' is negative: give 0 or more"),
        (cli.address, "0x10000000000000000", "does not fit in 64 bits"),
        (cli.count, "0", "0 exits is no run"),
        (cli.size, "64MB", "'64MB' is no memory size: write it as 512K, 64M or 1G"),
        (cli.size, "M", "'M' is no memory size"),
        (cli.size, "-64M", "'-64M' is no memory size"),
        (cli.size, "0", "'0' is not a whole number of 4096-byte pages"),
        (cli.size, "1000", "'1000' is not a whole number of 4096-byte pages"),
        (cli.seconds, "0", "'0' is no duration: give seconds above 0"),
        (cli.seconds, "-2", "'-2' is no duration"),
        (cli.seconds, "nan", "'nan' is no duration"),
        (cli.seconds, "inf", "'inf' is no duration"),
        (cli.seconds, "soon", "'soon' is no duration"),
    ],
)
def test_a_bad_number_says_what_would_be_good(
    parse: Callable[[str], float], text: str, message: str
) -> None:
    with pytest.raises(argparse.ArgumentTypeError) as caught:
        parse(text)
    assert message in str(caught.value)


# ---- what is asked for, before anything runs ----------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "vmxsim: the following arguments are required: COMMAND"),
        (["walk"], "vmxsim: COMMAND: invalid choice: 'walk'"),
        (["run"], "vmxsim: the following arguments are required: IMAGE"),
        (["run", HELLO, "--mode", "vm86"], "vmxsim: --mode: invalid choice: 'vm86'"),
        (["run", HELLO, "--memory", "lots"], "vmxsim: --memory: 'lots' is no memory size"),
        (["run", HELLO, "--entry", "0x"], "vmxsim: --entry: '0x' is not a number"),
        (["run", HELLO, "--mod", "real"], "vmxsim: unrecognized arguments: --mod"),
        (["run", HELLO, "-q", "-v"], "vmxsim: -v/--verbose: not allowed with argument -q/--quiet"),
        (["annotate"], "vmxsim: the following arguments are required: PROG.lst"),
        (["explain"], "vmxsim: the following arguments are required: what"),
    ],
)
def test_bad_usage_is_one_line_and_status_2(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(message)
    assert said.err.count("\n") == 1
    assert "--help" in said.err


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == "vmxsim 0.1.0\n"
    assert cli.main(["--help"]) == 0
    said = capsys.readouterr().out
    assert "examples:" in said
    assert "exit status of run:" in said
    assert cli.main(["run", "--help"]) == 0
    assert "--load-address" in capsys.readouterr().out


def test_the_module_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vmxsim", "--version"], cwd=ROOT, capture_output=True, check=True
    )
    assert done.stdout == b"vmxsim 0.1.0\n"


def test_the_commands_version_is_the_packages() -> None:
    from vmxsim import __version__

    assert f'version = "{__version__}"' in (ROOT / "pyproject.toml").read_text()
