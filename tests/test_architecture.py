"""The shape of the project: who may import whom, how long a file is, what is documented, what starts fast."""

import ast
import configparser
import importlib
import inspect
import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest

import kerasdef
import kerasdef.attacks
from kerasdef.attacks import Attack

PACKAGE = Path(kerasdef.__file__).parent
FRAMEWORKS = {"tensorflow", "jax"}
# from the bottom to the top; a part imports from its own level and below
LEVELS = [
    {"_version", "backend", "catalog"},
    {
        "annotations",
        "norms",
        "losses",
        "random",
        "checks",
        "settings",
        "goals",
        "threat",
        "files",
        "identity",
        "archives",
        "texts",
    },
    {"runs"},
    {"models"},
    {"datasets"},
    {"attacks"},
    {"poisoning"},
    {"training"},
    {"defenses"},
    {"evaluation"},
    {"reporting"},
    {"recipes"},
    {"cli"},
]
APART = [{"attacks", "datasets"}, {"training", "defenses"}]
ON_TOP = {"testing", "__init__", "__main__"}  # import what they like; nothing imports them
FILES = sorted(PACKAGE.rglob("*.py"))
MOST_LINES = 450
DISTRIBUTIONS = {"sklearn": "scikit-learn", "PIL": "pillow", "art": "adversarial-robustness-toolbox"}


def part(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(file: Path) -> set[str]:
    """Dotted names that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} has a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def parts_imported(file: Path) -> set[str]:
    return {name.split(".")[1] for name in imports(file) if name.startswith("kerasdef.")} - {"__version__"}


def level(name: str) -> int:
    return next(i for i, names in enumerate(LEVELS) if name in names)


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.relative_to(PACKAGE).as_posix())
def test_imports_go_only_down(file):
    own = part(file)
    assert own in set().union(*LEVELS) | ON_TOP, f"{own} has no place in the layers"
    if own in ON_TOP:
        return
    for other in parts_imported(file):
        assert other not in ON_TOP, f"{file.name} imports {other}"
        assert level(other) <= level(own), f"{file.name} imports {other}, which is above it"
        assert {own, other} not in APART, f"{own} and {other} must not import each other"


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.relative_to(PACKAGE).as_posix())
def test_only_the_backend_file_imports_a_framework(file):
    used = {name.split(".")[0] for name in imports(file)} & FRAMEWORKS
    if file in (PACKAGE / "models" / "export.py", PACKAGE / "models" / "served.py"):  # SavedModels; inside functions
        top = [
            n for n in ast.parse(file.read_text(encoding="utf-8")).body if isinstance(n, ast.Import | ast.ImportFrom)
        ]
        names = {a.name for n in top for a in n.names} | {n.module for n in top if isinstance(n, ast.ImportFrom)}
        assert not {name.split(".")[0] for name in names} & FRAMEWORKS
        assert used <= {"tensorflow"}
    elif file != PACKAGE / "backend.py":
        assert not used


def module_name(file: Path) -> str:
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules_imported(file: Path, known: set[str]) -> set[str]:
    """Modules of the package that a file imports: `from a import b` is a.b where that is one, else a."""
    found = set()
    for name in imports(file):
        found |= {name} if name in known else {name.rpartition(".")[0]} & known
    return found


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of names that reach each other."""
    reached = {}
    for start in graph:
        seen, todo = set(), list(graph[start])
        while todo:
            name = todo.pop()
            if name not in seen:
                seen.add(name)
                todo += graph[name]
        reached[start] = seen
    groups = {frozenset(b for b in reached[a] if a in reached[b]) for a in graph if a in reached[a]}
    return sorted(sorted(group) for group in groups)


def test_circles_are_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [["b", "c"]]
    assert circles({"a": {"b"}, "b": {"c"}, "c": set()}) == []


def test_no_two_files_import_each_other_not_even_around_others_or_inside_functions():
    known = {module_name(file) for file in FILES}
    assert circles({module_name(file): modules_imported(file, known) for file in FILES}) == []


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.relative_to(PACKAGE).as_posix())
def test_no_file_is_too_long_to_read_at_once(file):
    lines = file.read_text(encoding="utf-8").count("\n")
    assert lines <= MOST_LINES


def test_everything_that_is_imported_is_declared():
    setup = configparser.ConfigParser(interpolation=None)
    setup.read(PACKAGE.parent / "setup.cfg")
    extras = setup["options.extras_require"]
    lines = [*setup["options"]["install_requires"].split(), *extras["jax"].split(), *extras["onnx"].split()]
    declared = {re.split(r"[<>=\[]", line)[0].lower() for line in lines} | {"kerasdef"}
    used = {name.split(".")[0] for file in FILES for name in imports(file)} - sys.stdlib_module_names
    assert {DISTRIBUTIONS.get(name, name) for name in used} - declared == set()


def test_importing_kerasdef_and_its_command_line_does_not_import_a_framework():
    modules = ["kerasdef", "kerasdef.datasets"]
    if (PACKAGE / "cli.py").exists() or (PACKAGE / "cli").exists():
        modules.append("kerasdef.cli")
    names = "{'tensorflow', 'jax', 'keras'}"
    code = f"import sys, {', '.join(modules)}; print({names} & set(sys.modules) or 'none')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "none"


@pytest.mark.parametrize("package", ["attacks", "defenses", "datasets", "evaluation"])
def test_every_exported_class_and_function_has_a_docstring(package):
    module = importlib.import_module(f"kerasdef.{package}")
    for name, value in vars(module).items():
        if not name.startswith("_") and (inspect.isclass(value) or inspect.isfunction(value)):
            own = value.__dict__.get("__doc__") if inspect.isclass(value) else value.__doc__
            assert own, f"kerasdef.{package}.{name}"
            assert not own.startswith(f"{name}("), f"kerasdef.{package}.{name} has the docstring of its dataclass only"


def exported_attacks() -> list[str]:
    """Concrete attacks of the package, by name."""
    found = []
    for name, value in vars(kerasdef.attacks).items():
        attack = inspect.isclass(value) and issubclass(value, Attack)
        if attack and not inspect.isabstract(value):
            found.append(name)
    return found


@pytest.mark.parametrize("name", exported_attacks())
def test_every_exported_attack_has_a_row_in_the_readme(name):
    readme = PACKAGE.parent / "README.md"
    assert readme.exists(), "README.md is missing"
    rows = [line for line in readme.read_text(encoding="utf-8").splitlines() if line.lstrip().startswith("|")]
    assert any(name in row.replace("`", " ").replace("[", " ").split() for row in rows), f"{name} has no row"


def ways() -> dict[str, list[tuple[str, str]]]:
    """The ways through the code that CONTRIBUTING.md writes down: file and function of each stop, by heading."""
    text = (PACKAGE.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    sections = re.findall(r"^### (.+?)\n(.*?)(?=^#)", text, re.MULTILINE | re.DOTALL)
    return {head: re.findall(r"^\d+\. `([\w/]+\.py)` `([\w.]+)`", body, re.MULTILINE) for head, body in sections}


def defined(file: Path) -> set[str]:
    """Qualified names of the classes, functions and methods of a file."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    kinds = (ast.ClassDef, ast.FunctionDef)
    names = {node.name for node in tree.body if isinstance(node, kinds)}
    return names | {
        f"{node.name}.{inner.name}"
        for node in tree.body
        if isinstance(node, ast.ClassDef)
        for inner in node.body
        if isinstance(inner, kinds)
    }


def test_three_ways_through_the_code_are_written_down():
    assert len(ways()) == 3
    assert all(len(stops) >= 8 for stops in ways().values())


@pytest.mark.parametrize("way", ways())
def test_a_way_through_the_code_exists_and_comes_back_to_a_file_at_most_twice(way):
    stops = ways()[way]
    for file, name in stops:
        assert name in defined(PACKAGE / file), f"{file} has no {name}"
    visited = [file for file, _ in stops]
    for file, after in itertools.pairwise(visited):
        assert file != after, f"two stops in a row are in {file}"
    assert max(visited.count(file) for file in visited) <= 3
