"""What the package needs of `typing`, without importing that: TYPE_CHECKING, NamedTuple and Protocol.

A start imports nothing else that would need `typing`, which is a tenth of all its imports. Its NamedTuple moreover
compiles the annotation of each field, which nobody reads at run time, and imports `ast` for that from Python 3.14 on.
Type checkers see the ones of `typing`: they take any name TYPE_CHECKING for true.
"""

from __future__ import annotations

TYPE_CHECKING = False

if TYPE_CHECKING:
    from typing import NamedTuple as NamedTuple
    from typing import Protocol as Protocol
else:
    from collections import namedtuple

    _OF_THE_CLASS_ALONE = frozenset({"__module__", "__qualname__", "__annotations__", "__classdictcell__"})

    _PROHIBITED = frozenset({"__new__", "__init__", "__slots__", "__getnewargs__", "_fields", "_field_defaults"}) | {
        "_make",
        "_replace",
        "_asdict",
        "_source",
    }

    class _Maker(type):
        """Makes a class of `NamedTuple`'s children: a named tuple with the methods and properties of their bodies."""

        def __new__(cls, name, bases, body):  # noqa: ANN001, ANN204
            if bases != (NamedTuple,):
                raise TypeError(f"{name}: a named tuple has no other base")
            if odd := _PROHIBITED & body.keys():
                raise AttributeError(f"{name}: cannot overwrite {', '.join(sorted(odd))}")
            if {"__annotate__", "__annotate_func__"} & body.keys():
                raise TypeError(f"{name}: its module must have `from __future__ import annotations`")
            annotations = body.get("__annotations__", {})
            fields = list(annotations)
            defaults = [body[field] for field in fields if field in body]
            if any(field in body for field in fields[: len(fields) - len(defaults)]):
                raise TypeError(f"{name}: a field without a default follows one that has one")
            made = namedtuple(name, fields, defaults=defaults, module=body["__module__"])
            made.__annotations__ = dict(annotations)
            for key, value in body.items():
                if key not in _OF_THE_CLASS_ALONE and key not in fields:
                    setattr(made, key, value)
            return made

    NamedTuple = type.__new__(_Maker, "NamedTuple", (), {})

    class Protocol:
        """A base that says what its children have; nobody asks at run time."""
