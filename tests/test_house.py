"""The house's own rules: nothing shadows the standard library, rooms stay small and documented."""

import ast
import os
import platform
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {
    "intarsia_client": ROOT / "clients" / "intarsia_client",
    "intarsia_aggregators": ROOT / "aggregators" / "intarsia_aggregators",
    "intarsia_continual": ROOT / "continual" / "intarsia_continual",
    "intarsia_platform": ROOT / "platform" / "intarsia_platform",
}
FILES = sorted(path for package in PACKAGES.values() for path in package.rglob("*.py"))
NAMES = [str(path.relative_to(ROOT)) for path in FILES]
STANDARD_LIBRARY = Path(sysconfig.get_path("stdlib")).resolve()

BASE_MODULES = (
    "errors", "files", "wire", "assignment", "peft_configuration", "peft_files", "records",
    "shards", "start", "tensor_file", "transport", "optimizer_state", "client_state", "opened",
    "written", "peft_tensors",
)  # fmt: skip
HEAVY = ("torch", "transformers", "peft", "opacus", "flwr", "ray", "pyarrow", "pandas", "mlflow")

Function = ast.FunctionDef | ast.AsyncFunctionDef


def run(program: str, **environment: str) -> str:
    """Run a program with the repository's root as its first import path."""
    paths = [str(package.parent) for package in PACKAGES.values()]
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_platform_is_the_standard_librarys_under_pytest() -> None:
    assert Path(platform.__file__).resolve().parent == STANDARD_LIBRARY
    assert platform.system()


@pytest.mark.parametrize("on_path", ["", str(ROOT)], ids=["cwd", "PYTHONPATH"])
def test_platform_is_the_standard_librarys_from_the_root(on_path: str) -> None:
    program = "import sys, platform; assert sys.path[0] == ''; print(platform.__file__)"
    environment = {"PYTHONPATH": on_path} if on_path else {}
    assert Path(run(program, **environment)).resolve().parent == STANDARD_LIBRARY


def test_no_top_level_folder_is_a_package() -> None:
    folders = ["clients", "aggregators", "continual", "platform", "deploy", "helm", "tests"]
    inits = [str(ROOT / folder / "__init__.py") for folder in folders]
    inits += [str(path) for path in (ROOT / "tests").rglob("__init__.py")]
    assert [path for path in inits if Path(path).exists()] == []


@pytest.mark.parametrize("project", ["clients", "aggregators", "continual", "platform"])
def test_each_project_has_one_package_that_says_it_is_typed(project: str) -> None:
    packages = [path.parent for path in (ROOT / project).glob("*/__init__.py")]
    assert packages == [package for package in PACKAGES.values() if package.parent.name == project]
    assert (packages[0] / "py.typed").is_file()
    assert (ROOT / project / "pyproject.toml").is_file()


def test_the_base_client_imports_nothing_heavy() -> None:
    program = (
        f"import importlib, sys\n"
        f"for name in {BASE_MODULES!r}:\n"
        f"    importlib.import_module(f'intarsia_client.{{name}}')\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    assert run(program) == "[]"


def test_reading_a_configuration_imports_nothing_heavy() -> None:
    program = (
        f"import sys, intarsia_platform.configuration\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    assert run(program) == "[]"


def test_answering_imports_nothing_that_only_training_needs() -> None:
    program = (
        "import sys, intarsia_platform.gateway.app\n"
        "print([name for name in ('peft', 'opacus', 'flwr', 'ray') if name in sys.modules])"
    )
    assert run(program) == "[]"


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_rooms_and_functions_are_small(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert len(source.splitlines()) < 400
    long = [
        f"{node.name}: {lines}"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, Function) and (lines := length(node)) >= 60
    ]
    assert long == []


def length(function: Function) -> int:
    """Lines of a function without its docstring."""
    lines = (function.end_lineno or 0) - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function) is not None:
        lines -= (first.end_lineno or 0) - first.lineno + 1
    return lines


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_everything_public_is_documented(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), "the module"
    bare = [name for name, node in public(tree) if not ast.get_docstring(node)]
    assert bare == []


def public(
    tree: ast.Module | ast.ClassDef, prefix: str = ""
) -> Iterator[tuple[str, Function | ast.ClassDef]]:
    """Public functions and classes, and public methods of public classes."""
    for node in tree.body:
        if not isinstance(node, Function | ast.ClassDef) or node.name.startswith("_"):
            continue
        overrides = any("override" in ast.unparse(mark) for mark in node.decorator_list)
        overloads = any("overload" in ast.unparse(mark) for mark in node.decorator_list)
        if not (overrides or overloads):
            yield f"{prefix}{node.name}", node
        if isinstance(node, ast.ClassDef):
            yield from public(node, f"{prefix}{node.name}.")


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_no_assert_guards_production_code(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Assert)] == []


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_nothing_is_imported_by_the_name_of_a_folder(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom) and not node.level
            else []
        )
    }
    assert imported.isdisjoint({"clients", "aggregators", "continual", "tests"})
