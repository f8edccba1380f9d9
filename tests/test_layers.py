"""The architecture, held by a test: which part may import what."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Collection, Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import fastgen

PACKAGE = Path(fastgen.__file__).parent

# From the bottom up: a room imports only rooms before it. `types`, `text`, `errors`, `doctor` and `api` are
# modules.
ROOMS = (
    *("errors", "types", "text", "similarity", "methods", "store", "engine", "telemetry", "servers", "generate"),
    *("dedup", "export", "judge", "evaluate", "tune", "report", "simulator", "doctor", "cli", "api"),
)
PURE = {"similarity", "methods", "types", "text", "errors", "store.records", "store.ledger"}
READS_FILES = {
    "methods.catalogue",
    "methods.foreign",
    "methods.self_instruct.prompts",
    "methods.self_instruct.seeds",
    "similarity.jit",
    "similarity.layout",
}
NO_ASYNCIO = PURE | {"store", "export", "dedup", "report.status", "generate.options", "generate.audit"}
FILE_MODULES = {"pathlib", "os", "io", "shutil", "tempfile"}
KNOWS_NO_METHOD = {
    *("engine", "servers", "similarity"),
    *("store.log", "store.files", "store.job_folder", "store.tables"),
}
HEAVY = {
    *("numba", "numpy", "aiohttp", "datasketch", "uvloop", "regex", "zstandard"),
    *("jinja2", "markupsafe", "pyarrow"),
}


def modules() -> Iterator[tuple[str, ast.Module]]:
    """(name below the package, tree) of every module."""
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        yield name, ast.parse(path.read_text(encoding="utf-8"), str(path))


def among(name: str, rooms: Collection[str]) -> bool:
    """Whether a module is one of the rooms or lies in one."""
    return any(name == room or name.startswith(f"{room}.") for room in rooms)


def imported(tree: ast.Module) -> set[str]:
    """Names that a module imports when it runs, with those taken from them: a module or what is in one."""
    names: set[str] = set()
    for node in _runtime_nodes(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def _runtime_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those under ``if TYPE_CHECKING``."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        yield node
        yield from _runtime_nodes(node)


def offenders(rooms: Collection[str], forbidden: Collection[str], but: Collection[str] = ()) -> list[str]:
    """Imports of what is forbidden in these rooms, ``but`` those among them that may."""
    return [
        f"{name} imports {found}"
        for name, tree in modules()
        if among(name, rooms) and not among(name, but)
        for found in sorted(imported(tree))
        if among(found, forbidden)
    ]


@pytest.mark.parametrize("room", sorted({*ROOMS, *NO_ASYNCIO, *KNOWS_NO_METHOD, *READS_FILES}))
def test_every_room_that_a_rule_names_exists(room: str) -> None:
    assert any(among(name, {room}) for name, _ in modules())


def test_the_package_has_these_rooms_and_no_others() -> None:
    assert {name.split(".")[0] for name, _ in modules()} - {"__init__", "__main__", "fastgen"} == {*ROOMS}


def test_a_room_imports_only_rooms_below_it() -> None:
    """Also where a function imports when it is called."""
    found = []
    for name, tree in modules():
        if (room := name.split(".")[0]) in ROOMS:
            higher = {f"fastgen.{other}" for other in ROOMS[ROOMS.index(room) + 1 :]}
            found += [f"{name} imports {used}" for used in sorted(imported(tree)) if among(used, higher)]
    assert found == []


def test_rooms_import_only_the_public_modules_of_other_rooms() -> None:
    found = []
    for name, tree in modules():
        for node in ast.walk(tree):
            if not isinstance(node, ast.ImportFrom) or not node.module or node.module.count(".") == 0:
                continue
            _, room, *within = node.module.split(".")
            if room == name.split(".")[0] or room not in ROOMS or not (PACKAGE / room).is_dir():
                continue
            public = importlib.import_module(f"fastgen.{room}")
            used = [".".join(within)] if within else [alias.name for alias in node.names]
            allowed = {*getattr(public, "PUBLIC", ()), *getattr(public, "__all__", ())}
            found += [f"{name} imports {room}: {one}" for one in used if one not in allowed]
    assert found == []


def test_computing_and_storing_modules_import_no_asyncio_and_no_network() -> None:
    assert offenders(NO_ASYNCIO, {"asyncio", "aiohttp", "uvloop", "socketserver"}) == []


def test_computing_modules_import_no_file_access() -> None:
    assert offenders(PURE, FILE_MODULES, but=READS_FILES | {"types"}) == []  # types: a path is a value


def test_the_engine_the_servers_and_the_log_import_no_method() -> None:
    assert offenders(KNOWS_NO_METHOD, {"fastgen.methods"}) == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    """When they are loaded; what a function imports when it is called does not count."""
    trees = {}
    for path in PACKAGE.rglob("*.py"):
        name = ".".join(("fastgen", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
        trees[name] = ast.parse(path.read_text(encoding="utf-8"), str(path))
    assert len(trees) > 100
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
    """``python -m fastgen.simulator`` and ``python -m fastgen.report`` are command lines of their own.

    What starts a process gives it an environment.
    """
    starts_processes = {"servers", "telemetry.live_page"}
    found = [
        f"{name}: {ast.unparse(node)}"
        for name, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node) in {"sys.argv", "os.environ", "os.getenv"}
        if not among(name, {"cli", "simulator.__main__", "report.__main__"} | starts_processes)
    ]
    assert found == []


@pytest.mark.parametrize("arguments", [["--help"], ["generate", "--help"], ["--version"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    script = (
        "import sys\nfrom fastgen.cli import run\nrun(sys.argv[1:])\n"
        f"print('LOADED', sorted({HEAVY!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "LOADED []"


def unowned_work(tree: ast.AST) -> list[str]:
    """What begins a task or a thread and keeps nothing of it; a task of a ``TaskGroup`` is owned by the group."""
    groups = {
        ast.unparse(item.optional_vars)
        for node in ast.walk(tree)
        if isinstance(node, ast.AsyncWith)
        for item in node.items
        if item.optional_vars is not None and ast.unparse(item.context_expr).endswith("TaskGroup()")
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute) and ast.unparse(node).endswith("ensure_future"):
            found.append(ast.unparse(node))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            called = node.value.func
            if isinstance(called, ast.Attribute) and isinstance(called.value, ast.Call):
                found += [ast.unparse(called)] if ast.unparse(called.value.func).endswith(("Thread", "Timer")) else []
            name, _, owner = ast.unparse(called).rpartition(".")[::-1]
            found += [ast.unparse(called)] if name == "create_task" and owner not in groups else []
    return found


def test_every_task_and_thread_has_an_owner() -> None:
    assert [f"{name}: {work}" for name, tree in modules() for work in unowned_work(tree)] == []


@pytest.mark.parametrize(
    ("code", "count"),
    [
        ("task = asyncio.ensure_future(work())", 1),
        ("asyncio.create_task(work())", 1),
        ("loop.create_task(work())", 1),
        ("threading.Thread(target=work).start()", 1),
        ("Timer(1.0, work).start()", 1),
        ("task = asyncio.create_task(work())", 0),
        ("async def main():\n  async with asyncio.TaskGroup() as tasks:\n    tasks.create_task(work())", 0),
        ("async def main():\n  async with asyncio.TaskGroup() as tasks:\n    asyncio.create_task(work())", 1),
    ],
)
def test_work_without_an_owner_is_recognised(code: str, count: int) -> None:
    assert len(unowned_work(ast.parse(code))) == count
