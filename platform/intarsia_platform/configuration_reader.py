"""TOML tables into frozen dataclasses: types, ranges, unknown keys, and lines that help.

What the tables are is said in :mod:`intarsia_platform.configuration`; here is only how they are
read. All errors of a file are found together; the first is raised and says how many more there are.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import tomllib
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from intarsia_client.errors import InputError

Rule = Callable[[Any], str | None]
"""Looks at a key's value; returns what to do about it where it is wrong, else None."""

_DESCRIPTIONS: dict[object, str] = {
    str: "a string in quotes",
    int: "a whole number",
    float: "a finite number",
    bool: "true or false",
    tuple: "a list",
}
_ITEMS: dict[object, str] = {str: "strings", int: "whole numbers", float: "finite numbers"}


def at_least(bound: float) -> Rule:
    """A rule that the value is ``bound`` or more."""
    return lambda value: None if value >= bound else f"set it to {bound} or more"


def above(bound: float) -> Rule:
    """A rule that the value is more than ``bound``."""
    return lambda value: None if value > bound else f"set it above {bound}"


def one_of(*names: str) -> Rule:
    """A rule that the value is one of ``names``."""
    choices = " or ".join(f'"{name}"' for name in names)
    return lambda value: None if value in names else f"choose {choices}"


def not_empty(value: Sequence[object]) -> str | None:
    """The rule that a string or a list, and each string in it, holds something."""
    items = [value] if isinstance(value, str) else value
    if items and all(not isinstance(item, str) or item.strip() for item in items):
        return None
    return "fill it"


def read_tables(path: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Read a TOML file and put the overrides in place.

    Args:
        path: The file.
        overrides: Each ``table.key=value``; the value is TOML, or else a bare string.

    Returns:
        The file's tables.

    Raises:
        InputError: If the file cannot be read or is not TOML (names the line), or an override is
            not of that form.
    """
    try:
        tables = tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise InputError(
            "configuration", f"{path} ({error.strerror})", "name a TOML file that is there"
        ) from None
    except UnicodeDecodeError as error:
        raise InputError(
            "configuration", f"{path}: byte {error.start + 1} is not UTF-8", "save it as UTF-8"
        ) from None
    except (ValueError, RecursionError) as error:
        raise InputError("configuration", f"{path}: {error}", "correct the TOML there") from None
    for override in overrides:
        name, equals, text = override.partition("=")
        table, dot, key = name.strip().partition(".")
        if not (equals and dot and table and key):
            raise InputError("--set", override, "write table.key=value, as in train.epochs=2")
        values = tables.setdefault(table, {})
        if isinstance(values, dict):
            values[key] = _override_value(text.strip())
    return tables


def build_tables(
    kinds: Mapping[str, type], tables: Mapping[str, Any], rules: Mapping[str, Rule]
) -> dict[str, Any]:
    """Make each table's dataclass of what was read, with defaults for what was not.

    Args:
        kinds: From each table's name to its dataclass.
        tables: What was read.
        rules: From ``table.key`` to a rule on its value, asked when its type is right.

    Returns:
        From each table's name to an instance of its dataclass.

    Raises:
        InputError: The first of all errors: an unknown table or key, a missing key, a wrong type,
            a value out of range.
    """
    known = {
        f"{name}.{field.name}": field
        for name, kind in kinds.items()
        for field in dataclasses.fields(kind)
    }
    errors = []
    for name, values in tables.items():
        if name not in kinds:
            errors.append(_unknown(name, values, [*kinds, *known]))
        elif not isinstance(values, dict):
            errors.append(InputError(name, shown(values), f"write a table [{name}]"))
        else:
            unknown = [f"{name}.{key}" for key in values if f"{name}.{key}" not in known]
            errors += [_unknown(key, values[key[len(name) + 1 :]], [*known]) for key in unknown]
    built = {}
    for name, kind in kinds.items():
        given = tables.get(name, {})
        values, wrong = _values(name, kind, given if isinstance(given, dict) else {}, rules)
        errors += wrong
        built[name] = (kind, values)
    if errors:
        raise first_of(errors)
    return {name: kind(**values) for name, (kind, values) in built.items()}


def first_of(errors: Sequence[InputError]) -> InputError:
    """The first of several errors, which says how many more there are."""
    first = errors[0]
    if len(errors) == 1:
        return first
    more = f"{len(errors) - 1} more error{'s' if len(errors) > 2 else ''} in this configuration"
    return InputError(first.thing, first.value, f"{first.remedy} ({more})")


def shown(value: object) -> str:
    """A value on one line, as TOML would have it, cut where it is long."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _override_value(text: str) -> object:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return parsed["value"] if len(parsed) == 1 else text


def _unknown(name: str, value: object, known: Sequence[str]) -> InputError:
    """An error for a key that is not there, with the nearest one that is."""
    table, _, leaf = name.rpartition(".")

    def likeness(candidate: str) -> float:
        its_table, _, its_leaf = candidate.rpartition(".")
        # Of two keys as like, the one in the same table is meant.
        return difflib.SequenceMatcher(None, leaf, its_leaf).ratio() + 0.1 * (its_table == table)

    nearest = max(known, key=likeness)
    beside = [key for key in known if key.rpartition(".")[0] == table]
    remedy = f"there are {', '.join(beside)}"
    if likeness(nearest) > 0.6 or not beside:
        remedy = f"the nearest is {nearest}"
    return InputError(name, shown(value), f"there is no such key, {remedy}")


def _values(
    table: str, kind: type, given: Mapping[str, object], rules: Mapping[str, Rule]
) -> tuple[dict[str, Any], list[InputError]]:
    """The checked values that a table gives, and what is wrong with it."""
    values: dict[str, Any] = {}
    errors = []
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        key = f"{table}.{field.name}"
        if field.name not in given:
            if field.default is dataclasses.MISSING:
                errors.append(InputError(key, "missing", f"set it in the table [{table}]"))
            continue
        value = given[field.name]
        try:
            values[field.name] = _converted(hints[field.name], value)
        except TypeError:
            remedy = f"write {_description(hints[field.name])}"
            errors.append(InputError(key, shown(value), remedy))
            continue
        remedy_of = rules.get(key)
        wrong = remedy_of and remedy_of(values[field.name])
        if wrong:
            errors.append(InputError(key, shown(value), wrong))
    return values, errors


def _choices(hint: object) -> tuple[Any, ...]:
    """The types that a hint allows, None left out."""
    members = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return tuple(member for member in members if member is not type(None))


def _converted(hint: object, value: object) -> object:
    """The value as the hinted type; a whole number may stand for a float, nothing else converts.

    Raises:
        TypeError: If it is of another type.
    """
    for choice in _choices(hint):
        if typing.get_origin(choice) is tuple and isinstance(value, list):
            return tuple(_converted(typing.get_args(choice)[0], item) for item in value)
        if choice is float and isinstance(value, int | float) and not isinstance(value, bool):
            try:
                number = float(value)
            except OverflowError:
                continue
            if math.isfinite(number):
                return number
        elif choice in (str, int, bool) and type(value) is choice:
            return value
    raise TypeError


def _description(hint: object) -> str:
    """What a hint allows, in words."""
    words = []
    for choice in _choices(hint):
        if typing.get_origin(choice) is tuple:
            items = _ITEMS[typing.get_args(choice)[0]]
            words.append(f"a list of {items}")
        else:
            words.append(_DESCRIPTIONS[choice])
    return " or ".join(words)
