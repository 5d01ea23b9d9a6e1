"""An import hook that checks the shapes in medfed's signatures at every call, by jaxtyping and beartype.

jaxtyping's own hook decorates every function of every module, nested ones at every call, and has whatever a module
imports compiled anew. This one decorates the functions and dataclasses whose signature holds a shape, and those alone.
"""

from __future__ import annotations

import ast
import re
import sys
import zlib
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import jaxtyping

PACKAGE = "medfed"
CHECK = "__checks_shapes__"
HEADER = f"{CHECK} = __import__('jaxtyping').jaxtyped(typechecker=__import__('beartype').beartype)"


def install() -> None:
    """Check shapes in all modules of the package that are imported from now on."""
    assert PACKAGE not in sys.modules, f"{PACKAGE} is imported already; its shapes would not be checked"
    found = find_spec(PACKAGE)
    assert found is not None
    assert found.origin is not None
    sys.meta_path.insert(0, _Finder(shape_names(Path(found.origin).parent)))


def shape_names(package: Path) -> frozenset[str]:
    """Return jaxtyping's types and the names that the modules of a package give to shapes."""
    types = frozenset(name for name in dir(jaxtyping) if name[0].isupper())
    alias = re.compile(rf"^(\w+)(?:: TypeAlias)? = .*\b(?:{'|'.join(sorted(types))})\[", re.MULTILINE)
    sources = (path.read_text(encoding="utf-8") for path in package.rglob("*.py"))
    return types.union(*(alias.findall(source) for source in sources))


def with_checks(source: bytes | str, names: frozenset[str]) -> ast.Module:
    """Parse a module and decorate what holds one of ``names`` in its signature."""
    tree = ast.parse(source)
    decorated = [node for node in ast.walk(tree) if _holds_shapes(node, names)]
    for node in decorated:
        _decorate(node)
    if decorated:
        place = sum(isinstance(line, ast.Expr) or _is_future(line) for line in tree.body[:2])
        tree.body[place:place] = ast.parse(HEADER).body
    return ast.fix_missing_locations(tree)


class _Finder:
    def __init__(self, names: frozenset[str]) -> None:
        self._names = names
        self._mention = re.compile(rb"\b(?:%s)\b" % "|".join(sorted(names)).encode())

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name.partition(".")[0] != PACKAGE:
            return None
        spec = PathFinder.find_spec(name, path, target)
        loader = spec and spec.loader
        if isinstance(loader, SourceFileLoader) and self._mention.search(loader.get_data(loader.path)):
            spec.loader = _Loader(name, loader.path, self._names)
        return spec


class _Loader(SourceFileLoader):
    """Loads a module with checks; its bytecode is kept in a file of its own."""

    def __init__(self, name: str, path: str, names: frozenset[str]) -> None:
        super().__init__(name, path)
        self._names = names
        version = zlib.crc32(" ".join([*sorted(names), Path(__file__).read_text(encoding="utf-8")]).encode())
        self._ending = f".shapes-{version:08x}.pyc"

    def get_data(self, path: str) -> bytes:
        return super().get_data(path.replace(".pyc", self._ending))

    def set_data(self, path: str, data: bytes, *, _mode: int = 0o666) -> None:
        super().set_data(path.replace(".pyc", self._ending), data, _mode=_mode)  # type: ignore[call-arg]

    def source_to_code(self, data: bytes, path: str, *, _optimize: int = -1) -> object:  # type: ignore[override]
        return compile(with_checks(data, self._names), path, "exec", dont_inherit=True, optimize=_optimize)


def _holds_shapes(node: ast.AST, names: frozenset[str]) -> bool:
    return any(isinstance(part, ast.Name) and part.id in names for hint in _hints(node) for part in ast.walk(hint))


def _hints(node: ast.AST) -> Iterator[ast.expr]:
    """Yield the annotations of a function's signature or of a class's fields."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        given = node.args
        every = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
        yield from (argument.annotation for argument in every if argument and argument.annotation)
        yield from [node.returns] if node.returns else []
    if isinstance(node, ast.ClassDef):
        yield from (line.annotation for line in node.body if isinstance(line, ast.AnnAssign))


def _decorate(node: ast.AST) -> None:
    """Decorate a class last, when it is a dataclass already, and a function first, while it has its annotations."""
    check = ast.copy_location(ast.Name(CHECK, ast.Load()), node)
    if isinstance(node, ast.ClassDef):
        node.decorator_list.insert(0, check)
    elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        node.decorator_list.append(check)


def _is_future(line: ast.stmt) -> bool:
    return isinstance(line, ast.ImportFrom) and line.module == "__future__"
