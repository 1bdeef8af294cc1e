"""`calculate_output`: arithmetic over the results of graders, on a short list of what it may hold.

Python's parser reads it, nothing of Python runs it: numbers, graders' names, `+ - * /`, parentheses and a few functions
of floats. Powers are refused, `^` with them: it binds weaker than `+` in Python, and would be misread in silence.
"""

import ast
import math
from collections.abc import Callable, Collection, Mapping
from difflib import get_close_matches

from app.graders.failures import NotGraded

MAX_CHARACTERS = 500
MAX_DEPTH = 50

_OPERATORS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: lambda left, right: left + right,
    ast.Sub: lambda left, right: left - right,
    ast.Mult: lambda left, right: left * right,
    ast.Div: lambda left, right: left / right,
}
_OF_ONE: dict[str, Callable[[float], float]] = {
    "abs": abs,
    "floor": lambda value: float(math.floor(value)),
    "ceil": lambda value: float(math.ceil(value)),
    "exp": math.exp,
    "sqrt": math.sqrt,
    "log": math.log,
}
_OF_SOME: dict[str, Callable[..., float]] = {"min": min, "max": max}
FUNCTIONS = (*_OF_SOME, *_OF_ONE)


class BadFormula(ValueError):
    """An expression that is not arithmetic over the graders there are."""


def check(formula: str, names: Collection[str]) -> None:
    """Raises `BadFormula`, with what is wrong."""
    _check(_parse(formula), names, MAX_DEPTH)


def calculate(formula: str, values: Mapping[str, float]) -> float:
    """The number that a checked formula comes to. Raises `NotGraded` where it comes to none."""
    try:
        result = _value(_parse(formula), values)
    except ZeroDivisionError as error:
        raise NotGraded("calculate_output divides by zero.", "formula_parse_error") from error
    except (ValueError, OverflowError) as error:
        raise NotGraded(f"calculate_output has no value here: {error}.", "formula_parse_error") from error
    if not math.isfinite(result):
        raise NotGraded("calculate_output does not come to a finite number.", "formula_parse_error")
    return result


def _parse(formula: str) -> ast.expr:
    try:
        return ast.parse(formula.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise BadFormula("This is no arithmetic expression, such as '0.8 * a + 0.2 * max(b, c)'.") from error


def _check(node: ast.expr, names: Collection[str], depth: int) -> None:
    if depth == 0:
        raise BadFormula(f"The expression is nested deeper than {MAX_DEPTH}.")
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            if not _is_finite(number):
                raise BadFormula("A number is too large.")
        case ast.Name(id=name):
            if name not in names:
                near = get_close_matches(name, names, n=1)
                known = f"Did you mean '{near[0]}'?" if near else f"There are: {', '.join(names)}."
                raise BadFormula(f"There is no grader '{name[:100]}'. {known}")
        case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=operand):
            _check(operand, names, depth - 1)
        case ast.BinOp(left=left, op=operator, right=right) if type(operator) in _OPERATORS:
            _check(left, names, depth - 1)
            _check(right, names, depth - 1)
        case ast.BinOp(op=ast.Pow() | ast.BitXor()):
            raise BadFormula("Powers are not offered: multiply, or use sqrt and exp.")
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in FUNCTIONS:
            if len(args) != 1 and name in _OF_ONE:
                raise BadFormula(f"'{name}' takes one number.")
            if not args:
                raise BadFormula(f"'{name}' takes one number or more.")
            for arg in args:
                _check(arg, names, depth - 1)
        case _:
            raise BadFormula(
                f"Only numbers, graders' names, + - * /, parentheses and {', '.join(FUNCTIONS)} are allowed."
            )


def _value(node: ast.expr, values: Mapping[str, float]) -> float:
    match node:
        case ast.Constant(value=int() | float() as number):
            return float(number)
        case ast.Name(id=name):
            return values[name]
        case ast.UnaryOp(op=operator, operand=operand):
            value = _value(operand, values)
            return -value if isinstance(operator, ast.USub) else value
        case ast.BinOp(left=left, op=operation, right=right):
            return _OPERATORS[type(operation)](_value(left, values), _value(right, values))
        case ast.Call(func=ast.Name(id=name), args=[arg]) if name in _OF_ONE:
            return _OF_ONE[name](_value(arg, values))
        case ast.Call(func=ast.Name(id=name), args=args) if name in _OF_SOME:
            return _OF_SOME[name]([_value(arg, values) for arg in args])
    raise AssertionError(f"checked before: {ast.dump(node)[:100]}")


def _is_finite(number: float) -> bool:
    try:
        return math.isfinite(float(number))
    except OverflowError:
        return False
