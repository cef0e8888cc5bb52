"""Settings, each described once by its type: what is checked, said in an error and written into a JSON Schema.

A group of settings is a class under `@settings`, a frozen dataclass whose fields pydantic checks, whether it is made in
Python, from a YAML file or from an option. Values are never converted: "8" is no number, and true is none either.
This module knows no setting of its own but those that several groups share. It imports nothing heavy.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterable
from typing import Annotated, Any, Literal, TypeVar, dataclass_transform, get_args

from pydantic import AfterValidator, ConfigDict, Field, GetCoreSchemaHandler, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass
from pydantic_core import CoreSchema, ErrorDetails

T = TypeVar("T")

CONFIG = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True)

LARGEST_SEED = 2**32 - 1  # numpy and torch both take these

Dtype = Literal["float64", "float32", "bfloat16", "float16"]
DTYPES: tuple[str, ...] = get_args(Dtype)
Count = Annotated[int, Field(strict=True, ge=1, le=1_000_000_000)]
Seed = Annotated[int, Field(strict=True, ge=0, le=LARGEST_SEED)]
Tolerance = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
Threads = Annotated[int, Field(strict=True, ge=1, le=1024)]
CountOrNone = Annotated[int, Field(strict=True, ge=0, le=1_000_000_000)]  # where 0 is none of them
BatchSize = Annotated[int, Field(strict=True, ge=1, le=65_536)]
FinePasses = Annotated[int, Field(strict=True, ge=1, le=1024)]
Resamples = Annotated[int, Field(strict=True, ge=2, le=1_000_000)]  # of a bootstrap
Positive = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(strict=True, ge=0, le=1)]
TopP = Annotated[float, Field(strict=True, gt=0, le=1)]
Level = Annotated[float, Field(strict=True, gt=0, lt=1)]  # of an interval
Seconds = Annotated[float, Field(strict=True, gt=0, le=604_800)]  # a week
FrameRate = Annotated[float, Field(strict=True, gt=0, le=1000)]  # frames a second


def _device(name: str) -> str:
    kind, colon, number = name.partition(":")
    if name not in ("auto", "cpu", "cuda", "mps") and not (kind == "cuda" and colon and number.isdecimal()):
        raise ValueError("it must be auto, cpu, cuda, cuda:N or mps")
    return name


Device = Annotated[str, AfterValidator(_device)]


@dataclass_transform(frozen_default=True)
def settings(cls: type[T]) -> type[T]:
    """Class decorator: a frozen dataclass whose fields are checked (`CONFIG`). Its errors are ValueErrors of one
    sentence that names the field, the value and what would be right."""
    cls.__get_pydantic_core_schema__ = classmethod(_from_mapping)  # type: ignore[attr-defined]
    made = pydantic_dataclass(frozen=True, config=CONFIG)(cls)
    checked = made.__init__

    @functools.wraps(checked)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            checked(self, *args, **kwargs)
        except ValidationError as error:
            raise ValueError(sentence(error, cls.__name__, adapter(made))) from None

    made.__init__ = __init__  # type: ignore[method-assign]
    return made


def _from_mapping(cls: type, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
    """Strict are the fields; the class itself may be given as a mapping."""
    return {**handler(source), "strict": False}  # type: ignore[misc,return-value]


@functools.cache
def adapter(kind: Any) -> TypeAdapter[Any]:
    """pydantic's adapter of a type, made once."""
    return TypeAdapter(kind)


def check(kind: type[T] | Any, value: Any, where: str) -> T:
    """`value` as `kind`: a class under `@settings` from a mapping, or any annotated type.

    where: what the value is or came from ("config/mine.yaml"), the beginning of the error. Raises ValueError in one
    sentence naming key, value and what would be right; for an unknown key, the one that may have been meant.
    """
    try:
        return adapter(kind).validate_python(value)
    except ValidationError as error:
        raise ValueError(sentence(error, where, adapter(kind))) from None


def sentence(error: ValidationError, where: str, of: TypeAdapter[Any] | None = None) -> str:
    """The first of pydantic's errors in one sentence. of: whose error it is, to tell the keys that are known."""
    details = error.errors(include_url=False)
    first = next((detail for detail in details if detail["type"] in _UNKNOWN), details[0])  # a typo explains a gap
    path, value = _path(first["loc"]), first["input"]
    if first["type"] in (*_UNKNOWN, "missing"):
        *above, key = first["loc"]
        at = f"{where}: {_path(above)}" if above else where
        if first["type"] == "missing":
            return f"{at} lacks {key}"
        return unknown_key(at, str(key), _known_keys(of, above))
    at = f"{where}: {path}" if path else where
    return f"{at} is {_shown(value)}; {_wanted(first)}{_hint(value, first)}"


def unknown_key(where: str, key: str, known: Iterable[str]) -> str:
    """The sentence for a key that is none of `known`."""
    names = list(known)
    close = difflib.get_close_matches(key, names, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ";"
    return (
        f"{where} has the unknown key {key!r}{hint} known are {', '.join(names)}"
        if names
        else (f"{where} has the unknown key {key!r}")
    )


_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")
_TYPES = {
    "int": "a whole number",
    "float": "a number",
    "finite": "a finite number",
    "bool": "true or false",
    "string": "text",
    "list": "a list",
    "tuple": "a list",
    "dict": "a mapping, `key: value` lines",
    "mapping": "a mapping, `key: value` lines",
    "dataclass": "a mapping, `key: value` lines",
    "model": "a mapping, `key: value` lines",
    "none": "null",
}
_BOUNDS = {
    "greater_than_equal": "at least {ge}",
    "greater_than": "above {gt}",
    "less_than_equal": "at most {le}",
    "less_than": "below {lt}",
    "literal_error": "{expected}",
    "union_tag_invalid": "one of {expected_tags}",
    "too_short": "of at least {min_length}",
    "too_long": "of at most {max_length}",
    "string_too_short": "text of at least {min_length} letters",
}


def _wanted(error: ErrorDetails) -> str:
    kind, context = error["type"], error.get("ctx", {})
    if kind == "value_error":
        return str(context["error"])
    if kind in _BOUNDS:
        return f"it must be {_BOUNDS[kind].format(**context)}"
    known = _TYPES.get(kind.split("_")[0])
    return f"it must be {known}" if known else error["msg"][:1].lower() + error["msg"][1:]


def _hint(value: Any, error: ErrorDetails) -> str:
    text = isinstance(value, str) and error["type"].startswith(("float", "int"))
    return "; YAML reads 1e-5 as text, write 1.0e-5" if text and "e" in value and value[:1].isdigit() else ""


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"


def _path(location: Iterable[Any]) -> str:
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    return path


def _known_keys(of: TypeAdapter[Any] | None, above: Iterable[Any]) -> list[str]:
    """The keys that the mapping at `above` may have, from the JSON Schema of the type."""
    if of is None:
        return []
    schema = whole = of.json_schema()
    for part in [*above, None]:
        while "$ref" in schema:
            schema = whole["$defs"][schema["$ref"].rpartition("/")[2]]
        if part is None:
            break
        branches = [schema, *schema.get("anyOf", []), *schema.get("oneOf", [])]
        if "discriminator" in schema and part in schema["discriminator"]["mapping"]:
            schema = {"$ref": schema["discriminator"]["mapping"][part]}
            continue
        found = [b["properties"][part] for b in branches if part in b.get("properties", {})]
        found += [b["additionalProperties"] for b in branches if isinstance(b.get("additionalProperties"), dict)]
        found += [b["items"] for b in branches if isinstance(b.get("items"), dict)]
        if not found:
            return []
        schema = found[0]
    branches = [schema, *schema.get("anyOf", []), *schema.get("oneOf", [])]
    return [name for b in branches for name in b.get("properties", {})]
