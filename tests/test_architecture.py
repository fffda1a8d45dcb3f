"""The house: files import only from lower levels, stay short, and torch is imported only where it is needed."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "pipeline"
MAX_LINES, MAX_FUNCTION_LINES = 350, 60

LEVELS: list[set[str]] = [
    {"errors", "exif", "files", "invalid", "memory", "progress"},
    {"signals", "overrides"},
    {"config", "console", "regions"},
    {
        "images",
        "latents",
        "losses",
        "models.blocks",
        "training.watch",
        "training.status",
        "data.order",
        "evaluation.statistics",
        "evaluation.table",
    },  # and every other file of data/
    {"data.loader", "landmarks", "models.autoencoder", "models.discriminator", "models.perceptual"},
    {
        *("data.cache", "data.stream", "training.ranks", "training.checkpoint", "training.averaging", "pictures"),
        *("evaluation.distances", "evaluation.factors", "evaluation.mixing", "evaluation.output"),
    },
    {
        *("training.runtime", "training.writer", "bundle", "evaluation.effects", "evaluation.feature_maps"),
        *("evaluation.path", "evaluation.realism", "evaluation.shapley"),
    },
    {
        *(
            "training.setup",
            "training.tracking",
            "doctor",
            "bench.flops",
            "bench.memory",
            "bench.loading",
            "bench.sharding",
        ),
        *("evaluation.faces", "evaluation.pose"),
    },
    {"training.loop", "fuse", "evaluation.areas", "evaluation.portraits"},
    {"training.pretrain", "training.fusion", "evaluation.figures", "evaluation.sections"},
    {"evaluation.report", "evaluation.compare"},
    {"workflow", "bench.literal", "bench.exactness"},
    {"bench.step"},
    {"commands.options"},
    {"commands.data", "commands.training", "commands.results", "commands.bench"},
    {"cli"},
    {"__main__"},
]
DATA_LEVEL = 3
"""Files of data/ that LEVELS does not name: they may import one another, without a cycle."""
TORCH_IS_WELCOME = {
    *("images", "latents", "losses", "pictures", "bundle", "doctor", "fuse", "workflow"),
    *("regions", "landmarks"),
    *("data.loader", "data.cache", "data.stream", "data.workers"),
}
TORCH_FOLDERS = ("models.", "training.", "evaluation.", "bench.")


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


FILES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}
MODULES = {name: path for name, path in FILES.items() if not name.endswith("__init__")}


def level(module: str) -> int | None:
    for number, names in enumerate(LEVELS):
        if module in names:
            return number
    return DATA_LEVEL if module.startswith("data.") else None


def imports(path: Path) -> set[str]:
    """Our modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.split(".")[0] == "pipeline":
                parts = name.split(".")[1:]
                found |= {m for m in (".".join(parts), ".".join(parts[:-1])) if m in MODULES}
    return found


def test_every_file_has_a_level() -> None:
    assert [module for module in MODULES if level(module) is None] == []
    assert [module for names in LEVELS for module in names if module not in MODULES] == []


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down(module: str) -> None:
    own = level(module)
    assert own is not None
    for other in imports(MODULES[module]):
        theirs = level(other)
        assert theirs is not None
        within_data = module.startswith("data.") and other.startswith("data.") and own == theirs == DATA_LEVEL
        assert theirs < own or within_data, f"{module} (level {own}) imports {other} (level {theirs})"


def test_the_test_sees_imports() -> None:
    assert {"config", "losses", "models.blocks"} <= imports(MODULES["models.discriminator"])
    assert "latents" in imports(MODULES["models.autoencoder"])
    assert "data.writing" in imports(MODULES["workflow"])


def test_data_has_no_cycle() -> None:
    graph = {module: imports(path) for module, path in MODULES.items() if level(module) == DATA_LEVEL}
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, " -> ".join((*above, module))
        if module not in done:
            for other in graph.get(module, set()):
                visit(other, (*above, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_packages_import_nothing_of_ours_but_the_door() -> None:
    for name, path in FILES.items():
        if name.endswith("__init__"):
            assert imports(path) <= ({"bundle"} if name == "__init__" else set())


def without_torch() -> list[str]:
    return [m for m in MODULES if m not in TORCH_IS_WELCOME | {"__main__"} and not m.startswith(TORCH_FOLDERS)]


def test_no_torch_where_it_is_not_needed() -> None:
    modules = without_torch()
    assert {"cli", "config", "data.shards", "data.celeba", "data.synth", "data.order", "data.verifying"} <= set(modules)
    lines = ["import sys", *(f"import pipeline.{module}" for module in modules)]
    lines += ["print(*sorted({'torch', 'torchvision', 'accelerate'} & set(sys.modules)))"]
    found = subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True, capture_output=True, text=True)
    assert found.stdout.strip() == ""


@pytest.mark.parametrize("name", FILES)
def test_sizes(name: str) -> None:
    text = FILES[name].read_text(encoding="utf-8")
    assert len(text.splitlines()) < MAX_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno + 1 < MAX_FUNCTION_LINES, f"{name}.{node.name}"


@pytest.mark.parametrize("name", FILES)
def test_modules_say_what_they_are(name: str) -> None:
    assert ast.get_docstring(ast.parse(FILES[name].read_text(encoding="utf-8")))
