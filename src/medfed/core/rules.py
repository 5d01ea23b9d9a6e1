"""Rules over measured values, such as ``crea > 2 and bun > 30``: how findings and clinical pictures are declared.

A value is named ``variable.kind`` (``crea.high``, ``urine.sum``). A bare variable stands for its highest value before
``>`` and ``>=``. Before ``<`` and ``<=`` it stands for its lowest. So the rule asks whether it was ever so. Values may
be added, subtracted, multiplied and divided. ``and``, ``or`` and ``not`` join comparisons, and ``at_least(2, a, b, c)``
counts them. ``coded("AFIB", "AFLT")`` asks whether one of the codes was given. A comparison with a value that was not
measured is false.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float

Values = Float[np.ndarray, " example"]
Truths = Bool[np.ndarray, " example"]
Measured = Callable[[str], Values]
"""Returns the values of one measure, NaN where there is none."""
Coded = Callable[[str], Truths]
"""Returns which examples have a code."""
_OPERATORS = {ast.Add: np.add, ast.Sub: np.subtract, ast.Mult: np.multiply, ast.Div: np.divide}
_COMPARISONS = {ast.Gt: np.greater, ast.GtE: np.greater_equal, ast.Lt: np.less, ast.LtE: np.less_equal}
_AT_LEAST, _CODED = "at_least", "coded"
_FORMS = "comparisons (crea > 2), and, or, not, at_least(2, …) and coded(…)"


def _no_codes(code: str) -> Truths:
    raise ValueError(f"the rule asks for the code {code!r}, and the data has no codes")


@dataclass(frozen=True)
class Amount:
    """A value that is computed from measures, such as ``crea.high`` or ``po2.low / fio2.high``.

    Raises ValueError if the text is none.
    """

    text: str

    def __post_init__(self) -> None:
        list(_names_of(self._tree, None))

    @cached_property
    def _tree(self) -> ast.expr:
        return _parsed(self.text)

    @property
    def measures(self) -> tuple[str, ...]:
        """The measures that are read, each once."""
        return tuple(dict.fromkeys(_names_of(self._tree, None)))

    def values(self, measured: Measured) -> Values:
        """Return the value of every example; NaN where a measure is."""
        return _amount(self._tree, None, measured)


@dataclass(frozen=True)
class Rule:
    """A condition on measures and codes. Raises ValueError if the text is none."""

    text: str

    def __post_init__(self) -> None:
        list(self._parts(self._tree))

    @cached_property
    def _tree(self) -> ast.expr:
        return _parsed(self.text)

    @property
    def measures(self) -> tuple[str, ...]:
        """The measures that are read, each once; a bare variable by the value it stands for."""
        return tuple(dict.fromkeys(name for is_code, name in self._parts(self._tree) if not is_code))

    @property
    def codes(self) -> tuple[str, ...]:
        """The codes that are read, each once."""
        return tuple(dict.fromkeys(name for is_code, name in self._parts(self._tree) if is_code))

    def holds(self, measured: Measured, coded: Coded = _no_codes) -> Truths:
        """Return of which examples the rule is true."""
        return self._holds(self._tree, measured, coded)

    def _parts(self, node: ast.expr) -> Iterator[tuple[bool, str]]:
        """Yield (whether it is a code, name), and see that every part has a known form."""
        match node:
            case ast.BoolOp() | ast.UnaryOp(op=ast.Not()):
                for part in node.values if isinstance(node, ast.BoolOp) else [node.operand]:
                    yield from self._parts(part)
            case ast.Compare() if all(type(one) in _COMPARISONS for one in node.ops):
                for left, operator, right in _pairs(node):
                    for side, other in ((left, operator), (right, _turned(operator))):
                        yield from ((False, name) for name in _names_of(side, other))
            case ast.Call(func=ast.Name(id="at_least"), args=[ast.Constant(value=int()), _, *_], keywords=[]):
                for part in node.args[1:]:
                    yield from self._parts(part)
            case ast.Call(func=ast.Name(id="coded"), args=[_, *_], keywords=[]) if _texts(node.args):
                yield from ((True, name) for name in _texts(node.args))
            case _:
                raise ValueError(f"{ast.unparse(node)!r} is no condition; a rule has {_FORMS}")

    def _holds(self, node: ast.expr, measured: Measured, coded: Coded) -> Truths:
        match node:
            case ast.BoolOp():
                join = np.logical_and if isinstance(node.op, ast.And) else np.logical_or
                return np.asarray(join.reduce([self._holds(part, measured, coded) for part in node.values]))
            case ast.UnaryOp():
                return np.asarray(~self._holds(node.operand, measured, coded))
            case ast.Call(func=ast.Name(id="at_least")):
                counted = [self._holds(part, measured, coded).astype(int) for part in node.args[1:]]
                return np.asarray(np.sum(counted, axis=0) >= ast.literal_eval(node.args[0]))
            case ast.Call():
                return np.asarray(np.logical_or.reduce([coded(name) for name in _texts(node.args)]))
            case ast.Compare():
                return np.asarray(np.logical_and.reduce([_compare(*pair, measured) for pair in _pairs(node)]))
        raise AssertionError(node)


def _compare(left: ast.expr, operator: ast.cmpop, right: ast.expr, measured: Measured) -> Truths:
    sides = _amount(left, operator, measured), _amount(right, _turned(operator), measured)
    with np.errstate(invalid="ignore"):
        return np.asarray(_COMPARISONS[type(operator)](*sides))


def _parsed(text: str) -> ast.expr:
    try:
        return ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        raise ValueError(f"the rule {text!r} cannot be read: {error.msg}") from error


def _pairs(node: ast.Compare) -> list[tuple[ast.expr, ast.cmpop, ast.expr]]:
    sides = [node.left, *node.comparators]
    return list(zip(sides, node.ops, sides[1:], strict=False))


def _turned(operator: ast.cmpop) -> ast.cmpop:
    """Return the comparison as seen from its right side."""
    return ast.Lt() if isinstance(operator, ast.Gt | ast.GtE) else ast.Gt()


def _texts(nodes: list[ast.expr]) -> list[str]:
    """Return the texts that ``nodes`` are; none if one is no text."""
    texts = [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return texts if len(texts) == len(nodes) else []


def _measure(node: ast.expr, operator: ast.cmpop | None) -> str | None:
    """Return the measure that ``node`` names; None if it names none."""
    match node:
        case ast.Attribute(value=ast.Name(id=variable), attr=kind):
            return f"{variable}.{kind}"
        case ast.Name(id=variable) if operator is not None:
            return f"{variable}.{'high' if isinstance(operator, ast.Gt | ast.GtE) else 'low'}"
    return None


def _names_of(node: ast.expr, operator: ast.cmpop | None) -> Iterator[str]:
    if (name := _measure(node, operator)) is not None:
        yield name
        return
    match node:
        case ast.Constant(value=int() | float()):
            return
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            yield from _names_of(operand, operator)
        case ast.BinOp() if type(node.op) in _OPERATORS:
            yield from _names_of(node.left, None)
            yield from _names_of(node.right, None)
        case _:
            hint = "say which value of the variable is meant, as in crea.high"
            raise ValueError(f"{ast.unparse(node)!r} is no measured value; {hint}")


def _amount(node: ast.expr, operator: ast.cmpop | None, measured: Measured) -> Float[np.ndarray, "..."]:
    """Return the values of every example, or one number where no measure is read."""
    if (name := _measure(node, operator)) is not None:
        return measured(name)
    match node:
        case ast.UnaryOp():
            return np.asarray(-_amount(node.operand, operator, measured))
        case ast.BinOp():
            sides = _amount(node.left, None, measured), _amount(node.right, None, measured)
            with np.errstate(divide="ignore", invalid="ignore"):
                return np.asarray(_OPERATORS[type(node.op)](*sides), np.float64)
        case ast.Constant():
            return np.asarray(float(node.value))  # type: ignore[arg-type]
    raise AssertionError(node)
