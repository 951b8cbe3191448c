"""ARCHITECTURE.md, "its one direction", read off the source itself: every import of every module, lazy ones too."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src"
MODULES = {
    ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((SOURCE / "mptcp").rglob("*.py"))
}

#: Layer -> height in the column; a module may import what is lower, and its own layer. Equal heights do not see each other.
VOCABULARY = ("units", "entropy", "counters", "packet")
HEIGHTS = {
    "errors": 0,
    "info": 0,
    "forking": 0,
    **{f"core.{name}": 0 for name in VOCABULARY},
    "core.wire": 1,
    "core.congestion": 2,
    "core.tcp": 3,
    "core.schedulers": 4,
    "core.path_managers": 4,
    "core.multipath": 5,
    "core.host": 6,
    "links": 6,
    "kernel": 6,
    "runtime": 7,
    "sockets": 8,
    "adapters": 9,
    "cli": 10,
}
#: The bottom of the column is one layer: its modules may see each other.
BOTTOM = {name for name, height in HEIGHTS.items() if height == 0}
#: What stands beside the column -> the layers it may see besides its own.
BESIDE = {
    "sim": {name for name in HEIGHTS if name.startswith("core.")} | BOTTOM,
    "testing": set(HEIGHTS) - {"cli"} | {"sim"},
}
#: The two stacks do not see each other, whatever their heights.
STRANGERS = {("runtime", "kernel")}
#: Importable by nobody inside the package but ``cli`` (and ``testing``, which builds on the simulator).
PRIVATE_TO_USERS = {"sim": {"cli", "testing"}, "testing": {"cli"}}
#: One value type is shared downwards: a packet's payloads are a segment's. And one module of the simulator gives its hosts
#: the sockets that programs use, so that these run there unchanged; the rest of the simulator knows nothing of sockets.
ALLOWED = {
    ("mptcp.core.packet", "mptcp.core.wire.segment"),
    *(
        ("mptcp.sim.aio", above)
        for above in (
            "mptcp.runtime.aio", "mptcp.runtime.pump", "mptcp.runtime.waiting", "mptcp.sockets.address",
            "mptcp.sockets.loop", "mptcp.sockets.user",
        )
    ),
}  # fmt: skip

#: In the core time and randomness are arguments, and nothing touches the outside.
FORBIDDEN_IN_CORE = {
    "asyncio", "concurrent", "datetime", "logging", "multiprocessing", "os", "pathlib", "random", "secrets", "select",
    "selectors", "signal", "socket", "subprocess", "threading", "time", "uuid",
}  # fmt: skip


def layer(module: str) -> str:
    """The layer of a module of this package; "" for the package itself (``mptcp``, ``mptcp.__main__``)."""
    parts = module.split(".")[1:]
    if not parts or parts[0] == "__main__" or parts == ["core"]:
        return ""
    return ".".join(parts[:2]) if parts[0] == "core" else parts[0]


class _WithoutTypes(ast.NodeTransformer):
    """Takes away what only type checkers see."""

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        self.generic_visit(node)
        return node.orelse if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING" else node


def imports(module: str, path: Path, *, for_types: bool = True) -> Iterator[str]:
    """Every module that ``path`` imports, as an absolute name, wherever in the file it does so.

    Without ``for_types``, only what is imported when the program runs.
    """
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    tree: ast.AST = ast.parse(path.read_text(), str(path))
    if not for_types:
        tree = _WithoutTypes().visit(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parent = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parent, base]).rstrip(".")
            for alias in node.names:
                # ``from package import module`` imports the module; ``from module import name`` only the module.
                full = f"{base}.{alias.name}"
                yield full if full in MODULES else base


def may_import(importer: str, imported: str) -> bool:
    """Whether the architecture lets ``importer`` see ``imported`` (both modules of this package)."""
    above, below = layer(importer), layer(imported)
    if (importer, imported) in ALLOWED or above == below or not above:
        return True  # the package itself collects the public names from anywhere
    if not below:
        return above in {
            "cli",
            "testing",
        }
    if below in PRIVATE_TO_USERS:
        return above in PRIVATE_TO_USERS[below]
    if above in BESIDE:
        return below in BESIDE[above]
    if {above, below} <= BOTTOM:
        return True
    if (above, below) in STRANGERS:
        return False
    return HEIGHTS[below] < HEIGHTS[above]


def test_every_module_has_a_layer() -> None:
    homeless = {module for module in MODULES if layer(module) and layer(module) not in HEIGHTS.keys() | BESIDE.keys()}
    assert not homeless, "ARCHITECTURE.md and this test do not know them"


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_one_way(module: str) -> None:
    ours = {name for name in imports(module, MODULES[module]) if name.partition(".")[0] == "mptcp"}
    assert not {name for name in ours if not may_import(module, name)}


@pytest.mark.parametrize("module", [module for module in MODULES if module.startswith("mptcp.core")])
def test_core_is_pure_standard_library(module: str) -> None:
    roots = {name.partition(".")[0] for name in imports(module, MODULES[module])} - {"mptcp"}
    assert roots <= sys.stdlib_module_names
    assert not roots & FORBIDDEN_IN_CORE


@pytest.mark.parametrize(
    "module", [module for module in MODULES if layer(module) in {"links", "runtime", "sockets", "errors", "info"}]
)
def test_library_has_no_dependencies(module: str) -> None:
    roots = {name.partition(".")[0] for name in imports(module, MODULES[module], for_types=False)} - {"mptcp"}
    assert roots <= sys.stdlib_module_names, "pyproject.toml promises an empty list of dependencies"


@pytest.mark.parametrize(
    ("importer", "imported", "allowed"),
    [
        ("mptcp.core.tcp.sender", "mptcp.core.congestion.base", True),
        ("mptcp.core.congestion.base", "mptcp.core.tcp.sender", False),
        ("mptcp.core.schedulers.base", "mptcp.core.path_managers.base", False),
        ("mptcp.links.tun", "mptcp.core.wire.offload", True),
        ("mptcp.links.tun", "mptcp.core.host", False),
        ("mptcp.core.host", "mptcp.links.base", False),
        ("mptcp.sim.world", "mptcp.core.host", True),
        ("mptcp.sim.world", "mptcp.runtime.stack", False),
        ("mptcp.runtime.stack", "mptcp.sim.world", False),
        ("mptcp.runtime.stack", "mptcp", False),
        ("mptcp.cli.demo", "mptcp.testing.netns", True),
    ],
)
def test_the_rule_itself(importer: str, imported: str, allowed: bool) -> None:
    assert may_import(importer, imported) is allowed


def test_imports_for_types_can_be_left_out(tmp_path: Path) -> None:
    file = tmp_path / "x.py"
    file.write_text("import a\nif TYPE_CHECKING:\n    import b\nelse:\n    import c\n")
    assert set(imports("mptcp.x", file)) == {"a", "b", "c"}
    assert set(imports("mptcp.x", file, for_types=False)) == {"a", "c"}


def test_relative_and_lazy_imports_are_seen(tmp_path: Path) -> None:
    file = tmp_path / "connection.py"
    file.write_text("def f():\n    from ..wire import tcp\n    from . import sender\n    import time\n")
    assert set(imports("mptcp.core.tcp.connection", file)) >= {"time"}
    assert any(name.startswith("mptcp.core.wire") for name in imports("mptcp.core.tcp.connection", file))
    assert any(name.startswith("mptcp.core.tcp") for name in imports("mptcp.core.tcp.connection", file))
