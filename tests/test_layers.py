"""The architecture, held by a test: which part may import what."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Collection, Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import fastgen

PACKAGE = Path(fastgen.__file__).parent

NOTHING_OF_THE_PACKAGE = {"errors", "records"}
PURE = {"rouge", "filters", "rules", "stages", "index", "novelty", "commits", "ledger", "pool", "plan", "settled"}
PURE |= {"method", "run_state", "admission", "demonstrations", "training_text", "card", "card_command"}
PURE |= {"untrusted"}
NO_ASYNCIO = PURE | {"log", "store", "seeds", "export", "exporting", "hub", "status", "runs", "config"}
NO_FILES = PURE - {"stages"}  # stages.prompts loads the prompt set once
NO_ASYNCIO |= {"locking", "runfolder", "snapshot", "checkpoint"}
FILE_MODULES = {"pathlib", "os", "io", "shutil", "tempfile"}
KNOWS_NO_SELF_INSTRUCT = {"scheduler", "concurrency", "rate_limits", "backends", "log", "server", "embedded"}
SELF_INSTRUCT = {"stages", "plan", "filters", "rules", "novelty", "seeds", "index", "rouge", "settled"}
SELF_INSTRUCT |= {"demonstrations", "method", "run_state", "admission"}
KNOWS_NO_SELF_INSTRUCT |= {"asking", "asking_session", "locking", "stopping"}
KNOWS_NO_SELF_INSTRUCT |= {"snapshot", "delivery", "retries", "outage", "limits", "answer_queue", "rate_gate"}
HEAVY = {"numba", "numpy", "aiohttp", "datasketch", "uvloop", "regex", "zstandard"}


def modules() -> Iterator[tuple[str, ast.Module]]:
    """(room, tree) of every module; the room is its first name below the package."""
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        yield parts[0], ast.parse(path.read_text(encoding="utf-8"), str(path))


def imported(tree: ast.Module) -> set[str]:
    """Names that a module imports when it runs: ``fastgen.x.y`` as ``fastgen.x``, others by their first name."""
    names: set[str] = set()
    for node in _runtime_nodes(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= (
                {f"{node.module}.{alias.name}" for alias in node.names} if node.module == "fastgen" else {node.module}
            )
    return {".".join(name.split(".")[:2]) if name.startswith("fastgen.") else name.split(".")[0] for name in names}


def _runtime_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those under ``if TYPE_CHECKING``."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        yield node
        yield from _runtime_nodes(node)


def offenders(rooms: set[str], forbidden: set[str]) -> list[str]:
    return [
        f"{room} imports {sorted(hit)}"
        for room, tree in modules()
        if room in rooms and (hit := imported(tree) & forbidden)
    ]


def test_every_room_that_a_rule_names_exists() -> None:
    rooms = {room for room, _ in modules()}
    assert rooms >= (NOTHING_OF_THE_PACKAGE | NO_ASYNCIO | KNOWS_NO_SELF_INSTRUCT | SELF_INSTRUCT)


def test_records_and_errors_import_nothing_of_the_package() -> None:
    everything = {f"fastgen.{room}" for room, _ in modules()}
    assert offenders(NOTHING_OF_THE_PACKAGE, everything) == []


def test_the_method_and_the_store_know_no_asyncio_and_no_network() -> None:
    assert offenders(NO_ASYNCIO, {"asyncio", "aiohttp", "uvloop", "socketserver"}) == []


def test_the_method_touches_no_files() -> None:
    assert offenders(NO_FILES, FILE_MODULES) == []


def test_scheduler_backends_and_servers_know_nothing_of_self_instruct() -> None:
    assert offenders(KNOWS_NO_SELF_INSTRUCT, {f"fastgen.{room}" for room in SELF_INSTRUCT}) == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    """When they are loaded; what a function imports when it is called does not count."""
    trees = {}
    for path in PACKAGE.rglob("*.py"):
        name = ".".join(("fastgen", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
        trees[name] = ast.parse(path.read_text(encoding="utf-8"), str(path))
    assert len(trees) > 200
    imports = {name: loaded_with(tree, trees.keys()) - {name} for name, tree in trees.items()}
    TopologicalSorter(imports).prepare()  # raises CycleError, which names the circle


def loaded_with(tree: ast.Module, modules: Collection[str]) -> set[str]:
    """Those of the modules that the imports at the top of a module name."""
    found: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            taken = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= taken if taken <= {*modules} else {node.module}
    return found & {*modules}


def test_only_the_command_line_reads_argv_and_the_environment() -> None:
    """``python -m fastgen.testing`` and ``python -m fastgen.dashboard`` are command lines of their own."""
    found = [
        f"{room}: {ast.unparse(node)}"
        for room, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node) in {"sys.argv", "os.environ", "os.getenv"}
        if room not in {"cli", "commands", "testing", "embedded", "server", "dashboard"}
    ]
    assert found == []


def test_nothing_imports_the_command_line_but_its_entry_points() -> None:
    assert offenders({room for room, _ in modules()} - {"__main__"}, {"fastgen.cli"}) == []
    assert offenders({room for room, _ in modules()} - {"cli", "commands"}, {"fastgen.commands"}) == []


@pytest.mark.parametrize("arguments", [["--help"], ["generate", "--help"], ["--version"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    script = (
        "import sys\nfrom fastgen.cli import run\nrun(sys.argv[1:])\n"
        f"print('LOADED', sorted({HEAVY!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "LOADED []"
