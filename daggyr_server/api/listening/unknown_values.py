"""One rule for enums in requests: a number that the contract has no name for is an INVALID_ARGUMENT, wherever it stands.

`malformed` asks about the message of each call that brings one. What a message type holds is looked at once, by its descriptor,
so that types without enums cost a lookup. Whether a value that has a name fits the call, the service says.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

# Given a message, where the first unknown value stands and what it is; None if there is none.
Check = Callable[[Any], "str | None"]

_checks: dict[Any, Check | None] = {}


def unknown_value(message: Any) -> str | None:
    """The first unknown value, as in `states: 99 is no State`; None if the values of all enums have names."""
    descriptor = message.DESCRIPTOR
    try:
        check = _checks[descriptor]
    except KeyError:
        check = _checks[descriptor] = _check_of(descriptor, frozenset())
    return check(message) if check is not None else None


def _check_of(descriptor: Any, above: frozenset[Any]) -> Check | None:
    """A check for messages of this type; None if they hold no enums. A type that holds itself is not looked through again."""
    if descriptor in above:
        return None
    found = (_check_of_field(field, above | {descriptor}) for field in descriptor.fields)
    checks = [check for check in found if check is not None]
    if not checks:
        return None

    def all_of_them(message: Any) -> str | None:
        return next((found for check in checks if (found := check(message)) is not None), None)

    return all_of_them


def _check_of_field(field: Any, above: frozenset[Any]) -> Check | None:
    name = field.name
    if field.enum_type is not None:
        return _check_of_enum(field)
    inner = _check_of(field.message_type, above) if field.message_type is not None else None
    if inner is None:
        return None

    def within(found: str | None) -> str | None:
        return found and f"{name}.{found}"

    if not _is_repeated(field):
        return lambda message: within(inner(getattr(message, name))) if message.HasField(name) else None
    if not field.message_type.GetOptions().map_entry:
        return lambda message: next((within(found) for each in getattr(message, name) if (found := inner(each))), None)
    value = field.message_type.fields_by_name["value"]
    if value.message_type is None:
        return lambda message: within(_in_map(getattr(message, name), value))
    of_value = _check_of(value.message_type, above)
    assert of_value is not None, "only values of maps are no keys"
    return lambda message: next((within(found) for each in getattr(message, name).values() if (found := of_value(each))), None)


def _check_of_enum(field: Any) -> Check:
    name, kind = field.name, field.enum_type.name
    known = frozenset(field.enum_type.values_by_number)

    def one(message: Any) -> str | None:
        value = getattr(message, name)
        return None if value in known else f"{name}: {value} is no {kind}"

    def several(message: Any) -> str | None:
        return next((f"{name}: {value} is no {kind}" for value in getattr(message, name) if value not in known), None)

    return several if _is_repeated(field) else one


def _in_map(values: Any, value: Any) -> str | None:
    known = value.enum_type.values_by_number
    return next((f"{each} is no {value.enum_type.name}" for each in values.values() if each not in known), None)


def _is_repeated(field: Any) -> bool:
    return isinstance(field.default_value, list)  # `label` and `is_repeated` are not in every protobuf
