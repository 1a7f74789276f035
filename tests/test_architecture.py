"""The rules of the house, checked: walls between floors, sizes, the lazy door, the book's names.

Every failure names the file, the line and the rule, so that it can be mended without reading this.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "vmxsim"
SOURCES = sorted(PACKAGE.rglob("*.py"))
IDS = [str(path.relative_to(PACKAGE)) for path in SOURCES]

# ---- what each floor may import -----------------------------------------------------------------

GROUND = ("vmxsim.errors", "vmxsim.clock", "vmxsim.probes")
FLOORS: dict[str, tuple[str, ...]] = {
    "ground": GROUND,
    "arch": (*GROUND, "vmxsim.arch"),
    "cpu": (*GROUND, "vmxsim.arch", "vmxsim.cpu"),
    "vmx": (
        *GROUND, "vmxsim.arch", "vmxsim.vmx", "vmxsim.cpu.cpu", "vmxsim.cpu.interface",
        "vmxsim.cpu.memory", "vmxsim.cpu.traps",
    ),
    "kvm": (
        *GROUND, "vmxsim.arch", "vmxsim.kvm", "vmxsim.vmx.processor", "vmxsim.vmx.records",
        "vmxsim.vmx.vmcs",
    ),
    "vmm": (*GROUND, "vmxsim.arch", "vmxsim.vmm", "vmxsim.kvm.api", "vmxsim.kvm.uapi"),
    "tools": ("vmxsim",),
}  # fmt: skip
OUTSIDERS = {"cpu": {"unicorn", "capstone"}, "tools": {"pytest"}}
"""Third-party packages, by the floor that may import them; every other floor: none."""

# ---- sizes --------------------------------------------------------------------------------------

MODULE_LINES, BOOK_LINES, FUNCTION_LINES = 400, 800, 40
BOOK_MODULES = {"kvm/x86.py", "kvm/vmx.py"}
FACT_TABLES = {
    "arch/exit_reasons.py", "arch/vmcs_fields.py", "arch/controls.py", "arch/msrs.py",
    "arch/instruction_errors.py", "arch/cpuid.py", "arch/explanations.py", "kvm/uapi.py",
}  # fmt: skip

# ---- the book's names at the book's addresses ---------------------------------------------------

BOOK_NAMES = {
    "vmm/cpus.py": ["qemu_kvm_cpu_thread_fn", "qemu_kvm_wait_io_event", "halt_cond", "vm_start"],
    "vmm/kvm_all.py": [
        "kvm_init_vcpu", "kvm_arch_put_registers", "kvm_cpu_exec", "kvm_handle_io",
    ],
    "vmm/memory.py": ["address_space_rw"],
    "kvm/kvm_main.py": [
        "kvm_vcpu_ioctl", "vcpu_load", "kvm_io_bus_write", "kvm_vcpu_block", "kvm_vcpu_kick",
    ],
    "kvm/x86.py": [
        "kvm_arch_vcpu_ioctl_run", "vcpu_run", "kvm_vcpu_running", "vcpu_enter_guest",
        "inject_pending_event", "emulator_pio_in_out", "kernel_pio", "complete_userspace_io",
    ],
    "kvm/vmx.py": [
        "vmx_vcpu_load", "vmx_prepare_switch_to_guest", "vmx_vcpu_run", "vmx_handle_exit",
        "kvm_vmx_exit_handlers", "handle_io", "handle_cr", "handle_ept_violation",
    ],
    "kvm/requests.py": ["kvm_make_request", "kvm_check_request", "KVM_REQ_EVENT"],
}  # fmt: skip

MUTATORS = {
    "append", "extend", "insert", "add", "update", "pop", "popitem", "remove", "discard", "clear",
    "setdefault", "appendleft", "popleft", "sort", "reverse",
}  # fmt: skip
MUTABLE_CALLS = {"list", "dict", "set", "bytearray", "defaultdict", "deque", "Counter"}
CLOCK_READERS = {"time", "random", "secrets", "datetime"}
ALLOWED_TIMERS = {"perf_counter_ns", "perf_counter"}
"""Durations of host work are measurements, not decisions: reading them is allowed everywhere."""


def floor_of(path: Path) -> str:
    """The floor a file stands on: its directory, or ground / tools for the files at the top."""
    parts = path.relative_to(PACKAGE).parts
    if len(parts) > 1:
        return parts[0]
    return "tools" if parts[0] in ("__init__.py", "__main__.py") else "ground"


def imports(tree: ast.AST, path: Path) -> Iterator[tuple[int, str]]:
    """Every imported module as (line, full name); ``from a import b`` counts as ``a.b``."""
    package = ("vmxsim", *path.relative_to(PACKAGE).parts[:-1])
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join((*above, *([node.module] if node.module else [])))
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def wall_breaches(tree: ast.AST, path: Path) -> list[str]:
    """Imports that the floor's row of the table does not allow."""
    floor, where, found = floor_of(path), path.relative_to(ROOT), []
    for line, name in imports(tree, path):
        top = name.split(".")[0]
        if top == "vmxsim":
            allowed = any(name == ok or name.startswith(ok + ".") for ok in FLOORS[floor])
        else:
            top_is_standard = top in sys.stdlib_module_names or top in ("__future__", "_typeshed")
            allowed = top_is_standard or top in OUTSIDERS.get(floor, ())
        if not allowed:
            row = ", ".join(FLOORS[floor])
            found.append(f"{where}:{line}: {floor} may not import {name} (it may: {row})")
    return found


def without_docstring(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function from ``def`` to its end, its docstring not counted."""
    first, doc = node.body[0], 0
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
        doc = (first.end_lineno or first.lineno) - first.lineno + 1
    return (node.end_lineno or node.lineno) - node.lineno + 1 - doc


def too_long(tree: ast.AST, path: Path, text: str) -> list[str]:
    """The module, and its functions, over the limit."""
    name, where, found = str(path.relative_to(PACKAGE)), path.relative_to(ROOT), []
    limit = BOOK_LINES if name in BOOK_MODULES else MODULE_LINES
    lines = text.count("\n")
    if lines > limit and name not in FACT_TABLES:
        found.append(f"{where}: {lines} lines, a module has at most {limit}: split it by subject")
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = without_docstring(node)
            if length > FUNCTION_LINES:
                found.append(
                    f"{where}:{node.lineno}: {node.name} has {length} lines, "
                    f"a function has at most {FUNCTION_LINES}"
                )
    return found


def is_mutable(value: ast.expr | None) -> bool:
    """Is this expression a fresh list, dict, set or the like?"""
    if isinstance(value, ast.Call):
        return isinstance(value.func, ast.Name) and value.func.id in MUTABLE_CALLS
    displays = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)
    return isinstance(value, displays)


def module_containers(tree: ast.Module) -> set[str]:
    """Names bound at module level to something that could be changed in place."""
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.Assign) and is_mutable(node.value):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and is_mutable(node.value):
            names |= {node.target.id} if isinstance(node.target, ast.Name) else set()
    return names


def changed_name(node: ast.AST) -> ast.expr | None:
    """What a statement changes in place: X in ``X.append(..)``, ``X[..] = ..``, ``del X[..]``."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return node.func.value if node.func.attr in MUTATORS else None
    if isinstance(node, ast.Subscript) and isinstance(node.ctx, (ast.Store, ast.Del)):
        return node.value
    return None


def local_names(function: ast.AST) -> set[str]:
    """Parameters and assigned names of a function: they hide the module's."""
    names = {node.arg for node in ast.walk(function) if isinstance(node, ast.arg)}
    stores = (node for node in ast.walk(function) if isinstance(node, ast.Name))
    return names | {node.id for node in stores if isinstance(node.ctx, ast.Store)}


def mutable_state(tree: ast.Module, path: Path) -> list[str]:
    """Module-level containers that functions change, ``global``, and code that runs on import."""
    where, containers, found = path.relative_to(ROOT), module_containers(tree), []
    for function in ast.walk(tree):
        if not isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        hidden = local_names(function)
        for node in ast.walk(function):
            target = changed_name(node)
            if isinstance(node, ast.Global):
                found.append(f"{where}:{node.lineno}: global {', '.join(node.names)}: no "
                             "module-level mutable state; keep it in an object")  # fmt: skip
            elif isinstance(target, ast.Name) and target.id in containers - hidden:
                found.append(f"{where}:{node.lineno}: {function.name} changes the module's "
                             f"{target.id}: no module-level mutable state")  # fmt: skip
    for node in tree.body:
        ran = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
        if ran or isinstance(node, (ast.With, ast.While)):
            found.append(f"{where}:{node.lineno}: runs on import: no import has side effects")
    return found


def host_time(tree: ast.AST, path: Path) -> list[str]:
    """Reads of the host's clock or dice outside tools and clock.py: runs must be repeatable."""
    if floor_of(path) == "tools" or path.name == "clock.py":
        return []
    where, found = path.relative_to(ROOT), []
    used = {
        (node.value.id, node.attr): node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }
    for line, name in imports(tree, path):
        module, _, attribute = name.partition(".")
        if module not in CLOCK_READERS:
            continue
        reads = {attribute} if attribute else {a for m, a in used if m == module}
        for bad in sorted(reads - ALLOWED_TIMERS):
            found.append(f"{where}:{line}: {module}.{bad}: take the time from the Clock you are "
                         "given; only tools and clock.py may ask the host")  # fmt: skip
    return found


def defined_names(tree: ast.AST) -> set[str]:
    """Functions, classes, assigned names and assigned attributes."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.attr)
    return names


def parse(path: Path) -> tuple[ast.Module, str]:
    text = path.read_text(encoding="utf-8")
    return ast.parse(text, filename=str(path)), text


def complain(problems: list[str]) -> None:
    assert not problems, "\n" + "\n".join(problems)


# ---- the rules, file by file --------------------------------------------------------------------


@pytest.mark.parametrize("path", SOURCES, ids=IDS)
class TestEveryFile:
    def test_imports_only_what_its_floor_may(self, path: Path) -> None:
        complain(wall_breaches(parse(path)[0], path))

    def test_module_and_functions_keep_their_size(self, path: Path) -> None:
        tree, text = parse(path)
        complain(too_long(tree, path, text))

    def test_no_mutable_state_and_nothing_runs_on_import(self, path: Path) -> None:
        complain(mutable_state(parse(path)[0], path))

    def test_host_time_and_dice_stay_in_tools_and_clock(self, path: Path) -> None:
        complain(host_time(parse(path)[0], path))

    def test_first_line_says_what_is_special(self, path: Path) -> None:
        said = ast.get_docstring(parse(path)[0]) or ""
        first = said.partition("\n")[0]
        assert first.endswith((".", ":")) or "." in said, f"{path}: no sentence in its docstring"


@pytest.mark.parametrize(("file", "names"), BOOK_NAMES.items(), ids=list(BOOK_NAMES))
def test_the_books_names_stand_where_the_book_has_them(file: str, names: list[str]) -> None:
    path = PACKAGE / file
    assert path.exists(), f"vmxsim/{file} is missing; the book looks for {', '.join(names)} there"
    missing = [name for name in names if name not in defined_names(parse(path)[0])]
    assert not missing, f"vmxsim/{file} does not define {', '.join(missing)}"


def test_every_exit_reason_is_handled_or_excused_and_never_both() -> None:
    from vmxsim.arch.exit_reasons import NOT_MODELLED, ExitReason
    from vmxsim.kvm.vmx import kvm_vmx_exit_handlers

    handled, excused = set(kvm_vmx_exit_handlers), set(NOT_MODELLED)
    silent = sorted(set(ExitReason) - handled - excused)
    assert not silent, f"neither in kvm_vmx_exit_handlers nor in NOT_MODELLED: {silent}"
    assert not handled & excused, f"handled, yet excused: {sorted(handled & excused)}"
    assert all(NOT_MODELLED.values()), "an excuse without a reason"


# ---- the lazy door ------------------------------------------------------------------------------

LAZY = ["vmxsim", "vmxsim.arch", "vmxsim.errors", "vmxsim.clock", "vmxsim.tools.cli",
        "vmxsim.tools.explain", "vmxsim.__main__"]  # fmt: skip


@pytest.mark.parametrize("module", LAZY)
def test_facts_and_front_door_do_not_load_the_engine(module: str) -> None:
    program = (
        f"import sys, pkgutil, importlib; module = importlib.import_module({module!r})\n"
        "if module.__name__ == 'vmxsim.arch':\n"
        "    for found in pkgutil.iter_modules(module.__path__):\n"
        "        importlib.import_module('vmxsim.arch.' + found.name)\n"
        "print(sorted({'unicorn', 'capstone', 'vmxsim.cpu'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.stdout.strip(), done.stderr) == ("[]", ""), f"import {module} loads the engine"


def test_public_names_are_there() -> None:
    import vmxsim

    assert vmxsim.__all__
    missing = [name for name in vmxsim.__all__ if not hasattr(vmxsim, name)]
    assert missing == []
    assert set(vmxsim.__all__) <= set(dir(vmxsim))
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        vmxsim.Nothing  # noqa: B018  (the lookup is the test)


# ---- and the rules themselves -------------------------------------------------------------------

BREACHES = [
    ("kvm/x.py", "from vmxsim.cpu.cpu import Cpu", wall_breaches, "kvm may not import vmxsim.cpu"),
    ("kvm/x.py", "from ..vmm import machine", wall_breaches, "may not import vmxsim.vmm.machine"),
    ("vmx/x.py", "import vmxsim.cpu.image", wall_breaches, "may not import vmxsim.cpu.image"),
    ("vmm/x.py", "import unicorn", wall_breaches, "vmm may not import unicorn"),
    ("arch/x.py", "def f():\n    import capstone", wall_breaches, "arch may not import capstone"),
    ("errors.py", "from vmxsim.arch import bits", wall_breaches, "ground may not import"),
    ("arch/x.py", "A = []\ndef f():\n    A.append(1)", mutable_state, "f changes the module's A"),
    ("arch/x.py", "A = {}\ndef f():\n    A[1] = 2", mutable_state, "f changes the module's A"),
    ("arch/x.py", "def f():\n    global A\n    A = 1", mutable_state, "global A"),
    ("arch/x.py", "print(1)", mutable_state, "runs on import"),
    ("kvm/x.py", "import time\nnow = time.time()", host_time, "time.time: take the time from"),
    ("vmm/x.py", "from random import randint", host_time, "random.randint"),
]


@pytest.mark.parametrize(("file", "source", "rule", "message"), BREACHES)
def test_a_breach_is_found_and_named(file, source, rule, message) -> None:  # noqa: ANN001
    found = rule(ast.parse(source), PACKAGE / file)
    assert len(found) == 1
    assert message in found[0]
    assert found[0].startswith(f"vmxsim/{file}:")


KEPT = [
    ("vmx/x.py", "from vmxsim.cpu.traps import Trap\nimport struct", wall_breaches),
    ("cpu/x.py", "import unicorn", wall_breaches),
    ("vmm/x.py", "from vmxsim.kvm import api, uapi", wall_breaches),
    ("arch/x.py", "A = [1]\ndef f(A):\n    A.append(1)", mutable_state),
    ("kvm/x.py", "import time\nspent = time.perf_counter_ns()", host_time),
    ("tools/x.py", "import time\ntime.time()", host_time),
]


@pytest.mark.parametrize(("file", "source", "rule"), KEPT)
def test_what_is_allowed_passes(file, source, rule) -> None:  # noqa: ANN001
    assert rule(ast.parse(source), PACKAGE / file) == []


def test_long_functions_and_modules_are_found() -> None:
    body = "def f():\n" + "    x = 1\n" * 41
    found = too_long(ast.parse(body), PACKAGE / "vmm/x.py", body)
    assert found == ["vmxsim/vmm/x.py:1: f has 42 lines, a function has at most 40"]
    text = "x = 1\n" * 401
    assert "401 lines" in too_long(ast.parse(text), PACKAGE / "vmm/x.py", text)[0]
    assert too_long(ast.parse(text), PACKAGE / "kvm/x86.py", text) == []
