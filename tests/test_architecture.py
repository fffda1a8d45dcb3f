"""The house: a room imports only rooms below it, files stay short, and torch is imported only where it is needed."""

import ast
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "pipeline"
MAX_LINES, MAX_FUNCTION_LINES = 350, 60

ROOMS = ("common", "config", "models", "data", "measures", "inference", "training", "evaluation", "cli")
"""From the lowest floor to the highest."""
WITHIN_DATA = ("data.images", "data.source", "data.shards", "data.loading")
APART = ({"models", "data"}, {"training", "evaluation"})
"""Rooms that do not import each other."""


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


FILES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}
MODULES = {name: path for name, path in FILES.items() if name.split(".")[-1] not in ("__init__", "__main__")}


def room(module: str) -> str:
    return module.split(".")[0]


def imports(module: str) -> set[str]:
    """Our modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.split(".")[0] == "pipeline":
                parts = name.split(".")[1:]
                found |= {m for m in (".".join(parts), ".".join(parts[:-1])) if m in MODULES}
    return found


IMPORTS = {module: imports(module) for module in MODULES}


def test_every_file_has_a_room() -> None:
    assert {room(module) for module in MODULES} == set(ROOMS)


def test_rooms_import_only_rooms_below() -> None:
    for module, others in IMPORTS.items():
        for other in others:
            assert ROOMS.index(room(other)) <= ROOMS.index(room(module)), f"{module} imports {other}, which is above"
            assert {room(module), room(other)} not in APART, f"{module} imports {other}"


def test_the_rooms_of_data_are_in_order() -> None:
    places = {m: n for m in MODULES for n, name in enumerate(WITHIN_DATA) if m == name or m.startswith(f"{name}.")}
    for module, place in places.items():
        for other in IMPORTS[module] & places.keys():
            assert places[other] <= place, f"{module} imports {other}, which is above"


def test_no_files_import_each_other_in_a_circle() -> None:
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, " -> ".join((*above, module))
        if module not in done:
            for other in IMPORTS[module]:
                visit(other, (*above, module))
            done.add(module)

    for module in MODULES:
        visit(module, ())


def test_the_test_sees_imports() -> None:
    assert {"config.schema", "models.losses", "models.blocks"} <= IMPORTS["models.discriminator"]
    assert "data.shards.writing" in IMPORTS["cli.workflow"]


def test_commands_start_without_torch() -> None:
    modules = ["pipeline", *(f"pipeline.{m}" for m in MODULES if room(m) in ("common", "config")), "pipeline.cli.app"]
    lines = ["import sys", *(f"import {module}" for module in modules if module != "pipeline.common.devices")]
    lines += ["print(*sorted({'torch', 'torchvision', 'accelerate', 'numpy'} & set(sys.modules)))"]
    found = subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True, capture_output=True, text=True)
    assert found.stdout.strip() == ""


def test_sizes() -> None:
    for name, path in FILES.items():
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) < MAX_LINES, name
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                assert node.end_lineno - node.lineno + 1 < MAX_FUNCTION_LINES, f"{name}.{node.name}"


def test_modules_say_what_they_are() -> None:
    for name, path in FILES.items():
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), name
