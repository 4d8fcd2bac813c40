"""A small part of Python, interpreted: runs what a model wrote without executing it.

A program is one function of one argument: assignments, `if`, `return`; whole numbers, strings and flat lists, their
operators, slices, list comprehensions, a few functions and methods. Everything else is refused, as is whatever passes
a limit.
"""

import ast
import operator
import warnings
from collections.abc import Callable
from typing import Any

MAX_SOURCE = 512  # characters of a completion that is run
MAX_STEPS = 1000  # expressions and statements evaluated in a call
MAX_SIZE = 256  # characters of a string, items of a list
MAX_INT = 2**63  # magnitude of a number
_MAX_DEPTH = 40  # of nested expressions and statements

Value = int | bool | str | list


class RefusedError(Exception):
    """A program that is outside the language, beyond its limits, or wrong."""


def parse(source: str) -> ast.FunctionDef:
    """The one function of a program.

    Raises:
        RefusedError: it is not Python, or not one plain function of one argument.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a literal that is called, or an odd escape: it fails below
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # null bytes, surrogates, deep nesting
        raise RefusedError(str(error)) from error
    function = tree.body[0] if len(tree.body) == 1 else None
    if not isinstance(function, ast.FunctionDef) or len(function.args.args) != 1:
        raise RefusedError("not one function of one argument")
    return function


_BINARY: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod, ast.Pow: operator.pow,
}  # fmt: skip
_UNARY: dict[type, Callable[[Any], Any]] = {ast.USub: operator.neg, ast.UAdd: operator.pos, ast.Not: operator.not_}
_COMPARE: dict[type, Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt,
    ast.GtE: operator.ge, ast.In: lambda a, b: a in b, ast.NotIn: lambda a, b: a not in b,
}  # fmt: skip
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "abs": abs, "int": int, "len": len, "list": list, "max": max, "min": min, "sorted": sorted, "str": str, "sum": sum,
}  # fmt: skip
_METHODS: dict[type, frozenset[str]] = {
    str: frozenset(
        ("capitalize", "count", "endswith", "find", "join", "lower", "replace", "startswith", "strip", "swapcase",
         "title", "upper")
    ),
    list: frozenset(("count", "index")),
}  # fmt: skip


def call(function: ast.FunctionDef, argument: Value) -> Value:
    """What a function returns; nothing that it is given is changed.

    Raises:
        RefusedError: it returns nothing, fails, or does what is not allowed.
    """
    try:
        result = _Call().block(function.body, {function.args.args[0].arg: argument})
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:  # what the operations themselves raise
        raise RefusedError(str(error)) from error
    if result is None:
        raise RefusedError("it returns nothing")
    return result


def same(value: Value, other: Value) -> bool:
    """Equality with types, as 1 == True is none here."""
    if isinstance(value, list) and isinstance(other, list):
        return len(value) == len(other) and all(map(same, value, other))
    return type(value) is type(other) and value == other


class _Call:
    """One call of a function; every value on the way is checked against the limits."""

    def __init__(self) -> None:
        self._steps = self._depth = 0

    def block(self, body: list[ast.stmt], names: dict[str, Value]) -> Value | None:
        """The value of the return statement that is reached; None if there is none."""
        for statement in body:
            match statement:
                case ast.Return(value=ast.expr() as value):
                    return self._value(value, names)
                case ast.Assign(targets=[ast.Name(id=name)], value=value) if name not in _FUNCTIONS:
                    names[name] = self._value(value, names)
                case ast.AugAssign(target=ast.Name(id=name), op=op, value=value):
                    names[name] = self._value(ast.BinOp(ast.Name(name, ast.Load()), op, value), names)
                case ast.If(test=test, body=then, orelse=otherwise):
                    result = self.block(then if self._value(test, names) else otherwise, names)
                    if result is not None:
                        return result
                case _:
                    raise RefusedError(f"a statement {type(statement).__name__}")
        return None

    def _value(self, node: ast.expr, names: dict[str, Value]) -> Value:
        self._steps += 1
        self._depth += 1
        if self._steps > MAX_STEPS or self._depth > _MAX_DEPTH:
            raise RefusedError("too many steps, or too deep")
        value = self._evaluate(node, names)
        self._depth -= 1
        return _checked(value)

    def _evaluate(self, node: ast.expr, names: dict[str, Value]) -> Any:
        match node:
            case ast.Constant(value=value):
                return value
            case ast.Name(id=name):
                return names[name]
            case ast.UnaryOp(op=op, operand=operand):
                return _UNARY[type(op)](self._value(operand, names))
            case ast.BinOp(left=left, op=op, right=right):
                return _binary(type(op), self._value(left, names), self._value(right, names))
            case ast.BoolOp(op=op, values=operands):
                return self._first(isinstance(op, ast.Or), operands, names)
            case ast.Compare(left=left, ops=ops, comparators=right):
                return self._compare(left, ops, right, names)
            case ast.IfExp(test=test, body=then, orelse=otherwise):
                return self._value(then if self._value(test, names) else otherwise, names)
            case ast.List(elts=items):
                return [self._value(item, names) for item in items]
            case ast.ListComp(elt=item, generators=[ast.comprehension(target=ast.Name(id=name), is_async=0) as loop]):
                return self._comprehension(item, name, loop, names)
            case ast.Subscript(value=of, slice=ast.Slice(lower=lower, upper=upper, step=step)):
                bounds: list[Any] = [None if end is None else self._value(end, names) for end in (lower, upper, step)]
                return self._value(of, names)[slice(*bounds)]  # type: ignore[index]  # a TypeError is a failure
            case ast.Subscript(value=of, slice=index):
                return self._value(of, names)[self._value(index, names)]  # type: ignore[index]
            case ast.Call(func=function, args=args, keywords=[]):
                return self._called(function, names)(*[self._value(arg, names) for arg in args])
        raise RefusedError(f"an expression {type(node).__name__}")

    def _first(self, wanted: bool, operands: list[ast.expr], names: dict[str, Value]) -> Value:
        """The first operand of that truth, or the last one."""
        value: Value = False
        for operand in operands:
            value = self._value(operand, names)
            if bool(value) == wanted:
                break
        return value

    def _compare(self, left: ast.expr, ops: list[ast.cmpop], right: list[ast.expr], names: dict[str, Value]) -> bool:
        value = self._value(left, names)
        for op, node in zip(ops, right, strict=True):
            other = self._value(node, names)
            if not _COMPARE[type(op)](value, other):
                return False
            value = other
        return True

    def _comprehension(
        self, item: ast.expr, name: str, loop: ast.comprehension, names: dict[str, Value]
    ) -> list[Value]:
        inner, out = dict(names), []
        for inner[name] in self._value(loop.iter, names):  # type: ignore[union-attr]
            if all(self._value(test, inner) for test in loop.ifs):
                out.append(self._value(item, inner))
        return out

    def _called(self, function: ast.expr, names: dict[str, Value]) -> Callable[..., Any]:
        match function:
            case ast.Name(id=name) if name not in names:
                return _FUNCTIONS[name]
            case ast.Attribute(value=of, attr=name):
                value = self._value(of, names)
                if name in _METHODS.get(type(value), ()):
                    return getattr(value, name)
        raise RefusedError("a call that is not on the list")


def _binary(op: type, left: Any, right: Any) -> Any:
    """Numbers have every operator; strings and lists have + and repetition, if the result is not too long."""
    whole = isinstance(left, int) and isinstance(right, int)
    if whole and (op is not ast.Pow or 0 <= right <= 64):
        return _BINARY[op](left, right)
    if op is ast.Mult and isinstance(left, int):
        left, right = right, left
    long = op is ast.Mult and isinstance(right, int) and len(left) * right > MAX_SIZE
    if long or op not in (ast.Add, ast.Mult):
        raise RefusedError(f"{op.__name__} of {type(left).__name__} and {type(right).__name__}")
    return _BINARY[op](left, right)


def _checked(value: Any) -> Value:
    """The value, if its type and size are allowed. Lists are flat: no nesting, so no hidden size."""
    if isinstance(value, list):
        fits = len(value) <= MAX_SIZE and not any(isinstance(_checked(item), list) for item in value)
    else:
        fits = (type(value) in (int, bool) and abs(value) < MAX_INT) or (type(value) is str and len(value) <= MAX_SIZE)
    if not fits:
        raise RefusedError(f"a value of type {type(value).__name__} that is too large or not allowed")
    return value
