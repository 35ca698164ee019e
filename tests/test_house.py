# SPDX-License-Identifier: Apache-2.0
"""The house itself: who imports whom, how long a page may be, what every method and system must have."""

import ast
import dataclasses
import importlib
import importlib.util
import inspect
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from pydantic.fields import FieldInfo

import rarefy
from rarefy.errors import RecipeError
from rarefy.methods import METHODS
from rarefy.recipe import Recipe, method
from rarefy.step import Step
from rarefy.systems.catalogue import find_system, systems

HOME = Path(__file__).parents[1]
PACKAGE = HOME / "src" / "rarefy"
FLOORS = {
    7: {"cli", "__main__"},
    6: {"search", "report", "testing"},
    5: {"recipe", "outline", "compress", "systems"},
    4: {"methods"},
    3: {"prune", "quantize", "factorize", "distill", "substitute", "adapt", "synthesize"},
    2: {"loops", "measure", "export", "store", "zoo"},
    1: {"graph", "forms", "step", "task", "batches", "float32", "budget", "select", "errors"},
}
FLOOR = {room: floor for floor, rooms in FLOORS.items() for room in rooms}
LINES, BODY, ARGUMENTS = 250, 50, 8
FORBIDDEN = ("TODO", "FIXME", "XXX", "NotImplementedError", "pickle.load", "weights_only=False")

# Exceptions, each with its reason.
LONG_FILES: dict[str, str] = {}
LONG_FUNCTIONS: dict[str, str] = {}
MANY_ARGUMENTS = {
    "cli.networks.compress": "its arguments are the options of the command line",
}
UNDOCUMENTED = {
    "right_inverse": "torch.nn.utils.parametrize says what it is",
}


def sources(folder: Path, pattern: str = "*.py") -> list[Path]:
    """Files below a folder, in order, without what tools leave behind."""
    return sorted(p for p in folder.rglob(pattern) if "__pycache__" not in p.parts)


def place(path: Path) -> str:
    """``store.rfy`` for ``src/rarefy/store/rfy.py``."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


@cache
def tree(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


PAGES = {place(path): path for path in sources(PACKAGE)}
FACE = "__init__"


def imports(page: str) -> Iterator[tuple[str, int]]:
    """Pages of ours that a page imports, wherever the statement stands, with its line."""
    for node in ast.walk(tree(PAGES[page])):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{page}:{node.lineno}: write absolute imports"
            module = node.module or ""
            names = [module]
            if module.removeprefix("rarefy").removeprefix(".") not in PAGES or module == "rarefy":
                names = [f"{module}.{alias.name}" for alias in node.names]
            else:
                within = [f"{module}.{alias.name}" for alias in node.names]
                names += [n for n in within if n.removeprefix("rarefy.") in PAGES]
        for name in names:
            if name.startswith("rarefy."):
                target = name.removeprefix("rarefy.")
                yield target if target in PAGES else target.rpartition(".")[0], node.lineno


def room(page: str) -> str:
    """The top folder, or the file that stands alone."""
    return page.partition(".")[0]


def functions(path: Path) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """All functions of a file, nested ones too, with the classes and functions around them."""

    def below(node: ast.AST, prefix: str) -> Iterator[tuple[str, Any]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                if not isinstance(child, ast.ClassDef):
                    yield f"{prefix}.{child.name}", child
                yield from below(child, f"{prefix}.{child.name}")
            else:
                yield from below(child, prefix)

    yield from below(tree(path), place(path))


def test_every_room_has_a_floor() -> None:
    homeless = {room(page) for page in PAGES if page != FACE} - FLOOR.keys()
    assert not homeless, f"not in design: {sorted(homeless)}"


@pytest.mark.parametrize("page", sorted(PAGES.keys() - {FACE}))
def test_imports_run_downwards(page: str) -> None:
    for target, line in imports(page):
        if room(target) in ("", "__version__"):
            continue  # the face: its version
        assert room(target) in FLOOR, f"{page}:{line} imports {target}, which has no floor"
        mine, theirs = FLOOR[room(page)], FLOOR[room(target)]
        assert theirs <= mine, f"{page} (floor {mine}) line {line} imports {target} ({theirs})"
        if mine == theirs == 3:
            assert room(page) == room(target), f"{page}:{line}: one method room imports another"


def test_imports_make_no_circle() -> None:
    arrows = {page: {t for t, _ in imports(page) if t in PAGES} - {page} for page in PAGES}
    done: set[str] = set()

    def visit(page: str, path: tuple[str, ...]) -> None:
        assert page not in path, f"a circle of imports: {' -> '.join((*path, page))}"
        if page not in done:
            for target in sorted(arrows[page]):
                visit(target, (*path, page))
            done.add(page)

    for page in sorted(arrows):
        visit(page, ())


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its docstring, which may be as long as its arguments need."""
    total = (function.end_lineno or 0) - function.lineno + 1
    first = function.body[0]
    documented = ast.get_docstring(function) is not None
    return total - ((first.end_lineno or 0) - first.lineno + 1 if documented else 0)


@pytest.mark.parametrize("page", sorted(PAGES))
def test_a_page_is_short(page: str) -> None:
    lines = len(PAGES[page].read_text(encoding="utf-8").splitlines())
    assert lines <= LINES or page in LONG_FILES, f"{page} has {lines} lines"
    for name, function in functions(PAGES[page]):
        length = body_lines(function)
        assert length <= BODY or name in LONG_FUNCTIONS, f"{name} has {length} lines"
        given_to = function.args
        taken = [*given_to.posonlyargs, *given_to.args, *given_to.kwonlyargs]
        count = len([a for a in taken if a.arg not in ("self", "cls")])
        assert count <= ARGUMENTS or name in MANY_ARGUMENTS, f"{name} takes {count} arguments"


def test_exceptions_are_needed() -> None:
    names = {name: f for path in PAGES.values() for name, f in functions(path)}
    for page in LONG_FILES:
        assert len(PAGES[page].read_text(encoding="utf-8").splitlines()) > LINES, page
    for name in LONG_FUNCTIONS:
        assert body_lines(names[name]) > BODY, name
    assert names.keys() >= MANY_ARGUMENTS.keys()


def test_every_file_says_its_licence_and_its_purpose() -> None:
    folders = ("src", "tests", "examples", "benchmarks", "docs")
    for path in (p for folder in folders for p in sources(HOME / folder)):
        head = path.read_text(encoding="utf-8").splitlines()[:2]
        assert any("SPDX-License-Identifier: Apache-2.0" in line for line in head), path
        assert not tree(path).body or ast.get_docstring(tree(path)), f"{path}: no module docstring"
    for path in (p for kind in ("*.css", "*.js") for p in sources(PACKAGE, kind)):
        head = path.read_text(encoding="utf-8").splitlines()[:3]
        assert any("SPDX-License-Identifier: Apache-2.0" in line for line in head), path


def test_no_page_leaves_work_or_danger_behind() -> None:
    for path in sources(PACKAGE):
        text = path.read_text(encoding="utf-8")
        for word in FORBIDDEN:
            assert not re.search(rf"\b{re.escape(word)}\b", text), f"{path}: '{word}'"
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec"), f"{path}:{node.lineno}"
            if isinstance(node, ast.ExceptHandler) and node.type is None:
                pytest.fail(f"{path}:{node.lineno}: catches everything")


def public_names(page: str) -> Iterator[tuple[str, Any]]:
    """Functions, classes and methods of a page that carry no underscore."""
    module = importlib.import_module(f"rarefy.{page}" if page != FACE else "rarefy")
    for name, found in vars(module).items():
        if name.startswith("_") or getattr(found, "__module__", None) != module.__name__:
            continue
        if not inspect.isclass(found) and not isinstance(found, FunctionType):
            continue
        yield name, found
        members = vars(found).items() if inspect.isclass(found) else ()
        for inner, member in members:
            member = member.__func__ if isinstance(member, (classmethod, staticmethod)) else member
            if not inner.startswith("_") and isinstance(member, (FunctionType, property)):
                yield f"{name}.{inner}", getattr(found, inner)


@pytest.mark.parametrize("page", sorted(PAGES.keys() - {"__main__"}))
def test_every_public_name_is_documented(page: str) -> None:
    silent = []
    for name, found in public_names(page):
        text = inspect.getdoc(found) or UNDOCUMENTED.get(name.rpartition(".")[2], "")
        if not text or text.startswith(f"{name}("):  # what a dataclass writes for itself
            silent.append(name)
    assert not silent, f"rarefy.{page}: no docstring for {', '.join(silent)}"


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_a_documented_step(name: str) -> None:
    cls = method(name)
    assert issubclass(cls, Step)
    assert cls is not Step
    assert cls.key() == name
    assert dataclasses.is_dataclass(cls)
    assert cls.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert cls.apply is not Step.apply
    assert "__doc__" in vars(cls)
    assert cls.__doc__
    assert not cls.__doc__.startswith(f"{cls.__name__}(")
    module, where = importlib.import_module(cls.__module__), METHODS[name][0]
    assert where == f"{cls.__module__}:{cls.__name__}", "named where it is not defined"
    assert room(cls.__module__.removeprefix("rarefy.")) in FLOORS[3]
    assert module.__doc__
    for field in dataclasses.fields(cls):
        assert re.search(rf"\b{field.name}\b", cls.__doc__), (
            f"{name}: {field.name} is not explained"
        )


def resolved(hint: Any) -> Any:
    """A field's type with pydantic's limits spelled as the plain constraints that hypothesis reads."""
    if get_origin(hint) is Annotated:
        inner, *notes = get_args(hint)
        plain = [m for n in notes for m in (n.metadata if isinstance(n, FieldInfo) else [n])]
        return Annotated[(resolved(inner), *plain)] if plain else resolved(inner)
    arguments = get_args(hint)
    if get_origin(hint) is tuple:
        return tuple[tuple(a if a is ... else resolved(a) for a in arguments)]  # type: ignore[misc]
    if arguments and get_origin(hint) is not None and "Union" in str(get_origin(hint)):
        united: Any = resolved(arguments[0])
        for argument in arguments[1:]:
            united = united | resolved(argument)
        return united
    return hint


def values(hint: Any) -> st.SearchStrategy[Any]:
    """Any value that a field's annotation allows."""
    limits = [m for n in getattr(hint, "__metadata__", ()) for m in getattr(n, "metadata", ())]
    for pattern in (m.pattern for m in limits if hasattr(m, "pattern")):
        return st.from_regex(re.compile(pattern, re.ASCII), fullmatch=True)
    return st.from_type(resolved(hint))


def legal(cls: type[Step]) -> st.SearchStrategy[dict[str, Any]]:
    """Any of the settings that a method's annotations allow, fields left out at will."""
    hints = get_type_hints(cls, include_extras=True)
    fields = {f.name: values(hints[f.name]) for f in dataclasses.fields(cls)}
    required = {f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING}
    must = {name: value for name, value in fields.items() if name in required}
    may = {name: value for name, value in fields.items() if name not in required}
    return st.fixed_dictionaries(must, optional=may)


@pytest.mark.parametrize("name", METHODS)
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_method_survives_yaml(name: str, data: st.DataObject) -> None:
    cls = method(name)
    chosen = data.draw(legal(cls))
    try:
        step = cls(**chosen)
    except RecipeError:
        assume(False)  # fields that exclude each other
    again = Recipe.from_yaml(Recipe((step,)).to_yaml())
    assert again.steps == (step,)
    assert again.to_yaml() == Recipe((step,)).to_yaml()


@pytest.mark.parametrize("name", sorted(systems()))
def test_a_system_is_a_tested_recipe(name: str) -> None:
    system = find_system(name)
    recipe = Recipe.from_yaml(system.text, name)
    assert Recipe.from_yaml(recipe.to_yaml()).steps == recipe.steps
    assert (PACKAGE / "systems" / f"{name}.yaml").read_text(encoding="utf-8") == system.text
    assert all((system.title, system.group, system.paper, system.claim))
    assert system.methods == tuple(step.key() for step in recipe.steps)
    assert bool(system.methods) != bool(system.part), "a row has steps or a part that serves it"
    if system.part:
        assert importlib.util.find_spec(system.part) is not None
    test = HOME / "tests" / "systems" / f"test_{name.replace('-', '_')}.py"
    assert test.is_file(), f"{test.relative_to(HOME)} is missing"
    names = {f.name for f in ast.walk(tree(test)) if isinstance(f, ast.FunctionDef)}
    assert any(n.startswith("test_") for n in names), f"{test.name} tests nothing"


def test_no_test_is_skipped_whatever_happens() -> None:
    for path in sources(HOME / "tests"):
        for parent in ast.walk(tree(path)):
            if isinstance(parent, ast.Attribute) and ast.unparse(parent).endswith(
                ("mark.skip", "mark.xfail", "unittest.skip")
            ):
                pytest.fail(f"{path}:{parent.lineno}: {ast.unparse(parent)}")
            body = getattr(parent, "body", ())
            if not isinstance(parent, (ast.Module, ast.FunctionDef)):
                continue
            for statement in body:
                text = ast.unparse(statement) if isinstance(statement, ast.Expr) else ""
                assert not text.startswith("pytest.skip("), f"{path}:{statement.lineno}: {text}"


def test_the_face_names_what_exists() -> None:
    assert set(rarefy.FACE) == set(rarefy.__all__) - {"__version__"}
    for name in rarefy.__all__:
        assert getattr(rarefy, name) is not None


def test_no_module_hides_a_name_of_the_face() -> None:
    for name in rarefy.FACE:  # rarefy.compress is a function, whatever was imported before
        if importlib.util.find_spec(f"rarefy.{name}") is not None:
            importlib.import_module(f"rarefy.{name}")
        assert not isinstance(getattr(rarefy, name), ModuleType), name


def test_the_environment_is_pinned() -> None:
    text = (HOME / "requirements.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    pins = {canonicalize_name(r.name): r for r in map(Requirement, lines)}
    assert len(pins) == len(lines), "a package is pinned twice"
    for pin in pins.values():
        assert re.fullmatch(r"==[0-9][^*,]*", str(pin.specifier)), f"{pin} is no pin"
    project = tomllib.loads((HOME / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    asked = [*project["dependencies"], *extras["test"], *extras["docs"], *extras["lint"]]
    for wish in map(Requirement, asked):
        pin = pins.get(canonicalize_name(wish.name))
        assert pin is not None, f"{wish.name} is not pinned in requirements.txt"
        version = str(pin.specifier).removeprefix("==")
        assert wish.specifier.contains(version), f"{pin} is not what pyproject.toml allows"
    assert "://" not in text, "no address belongs into the list"
