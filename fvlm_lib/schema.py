"""Settings, each described once by its type: what is checked, said in an error and written into a JSON Schema.

A group of settings is a class under `@settings`, a frozen dataclass whose fields pydantic checks, whether it is made in
Python, from a YAML file or from an option. Values are never converted: "8" is no number, and true is none either.
This module knows no setting of its own but those that several groups share. It imports nothing heavy.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import numbers
import re
import reprlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any, Literal, TypeVar, dataclass_transform, get_args, overload

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    TypeAdapter,
    ValidationError,
)
from pydantic.dataclasses import dataclass as pydantic_dataclass
from pydantic_core import CoreSchema, ErrorDetails

T = TypeVar("T")

CONFIG = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True)

# ---- types that several groups of settings share -------------------------------------------------------

LARGEST_SEED = 2**32 - 1  # numpy and torch both take these

Dtype = Literal["float64", "float32", "bfloat16", "float16"]
DTYPES: tuple[str, ...] = get_args(Dtype)
Fit = Literal["processor", "squash", "pad"]
FITS: tuple[str, ...] = get_args(Fit)
Metric = Literal["max", "mean"]
Reference = Literal["encoded", "previous"]
Propagate = Literal["gated", "budget", "none"]
Prefill = Literal["full", "exact", "gated"]
RANDOM_CLIPS = ("random:clip-vit-large-patch14-336", "random:clip-tiny")
RANDOM_TOWERS = (
    *RANDOM_CLIPS, "random:qwen2.5-vl-3b", "random:qwen3-vl-2b", "random:siglip-so400m-patch16-384",
    "random:smolvlm2-500m", "random:internvl3-1b", "random:fastvithd-1024",
)  # fmt: skip
"""Vision towers of random weights, for times: of real size but for the tiny one."""
Count = Annotated[int, Field(strict=True, ge=1, le=1_000_000_000)]
Seed = Annotated[int, Field(strict=True, ge=0, le=LARGEST_SEED)]
Tolerance = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
Pixels = Annotated[int, Field(strict=True, ge=1, le=4096)]  # on a side
Threads = Annotated[int, Field(strict=True, ge=1, le=1024)]
CountOrNone = Annotated[int, Field(strict=True, ge=0, le=1_000_000_000)]  # where 0 is none of them
BatchSize = Annotated[int, Field(strict=True, ge=1, le=65_536)]
NewTokens = Annotated[int, Field(strict=True, ge=1, le=100_000)]
FinePasses = Annotated[int, Field(strict=True, ge=1, le=1024)]
Resamples = Annotated[int, Field(strict=True, ge=2, le=1_000_000)]  # of a bootstrap
Positive = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(strict=True, ge=0, le=1)]
Temperature = Annotated[float, Field(strict=True, ge=0, le=100)]
TopP = Annotated[float, Field(strict=True, gt=0, le=1)]
Beams = Annotated[int, Field(strict=True, ge=1, le=64)]
Level = Annotated[float, Field(strict=True, gt=0, lt=1)]  # of an interval
Seconds = Annotated[float, Field(strict=True, gt=0, le=604_800)]  # a week
SecondsOrNone = Annotated[float, Field(strict=True, ge=0, le=604_800)]  # where 0 is no wait at all
FrameRate = Annotated[float, Field(strict=True, gt=0, le=1000)]  # frames a second


def _device(name: str) -> str:
    kind, colon, number = name.partition(":")
    if name not in ("auto", "cpu", "cuda", "mps") and not (kind == "cuda" and colon and number.isdecimal()):
        raise ValueError("it must be auto, cpu, cuda, cuda:N or mps")
    return name


def _distinct(values: Sequence[Any]) -> Sequence[Any]:
    if twice := next((value for place, value in enumerate(values) if value in values[:place]), None):
        raise ValueError(f"it names {twice!r} twice")
    return values


Device = Annotated[str, AfterValidator(_device), Field(json_schema_extra={"pattern": r"^(auto|cpu|mps|cuda(:\d+)?)$"})]
Distinct = AfterValidator(_distinct)
"""Of a list: that nothing is in it twice."""

AsTuple = BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)
"""Of a tuple: that it may be given as a list, which is what YAML and JSON have."""

# ---- classes of settings, and values checked -----------------------------------------------------------


@dataclass_transform(frozen_default=True)
def settings(cls: type[T]) -> type[T]:
    """Class decorator: a frozen dataclass whose fields are checked (`CONFIG`). Its errors are ValueErrors of one
    sentence that names the field, the value and what would be right."""
    cls.__get_pydantic_core_schema__ = classmethod(_from_mapping)  # type: ignore[attr-defined]
    made: Any = pydantic_dataclass(frozen=True, config=CONFIG)(cls)
    checked = made.__init__
    names = [item.name for item in dataclasses.fields(made) if not item.kw_only]

    @functools.wraps(checked)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        if len(args) > len(names) or kwargs.keys() & {*names[: len(args)]}:
            raise TypeError(f"{cls.__name__} takes {', '.join(names)}, each once")
        given = {**dict(zip(names, args, strict=False)), **kwargs}  # by name, as errors tell them
        try:
            checked(self, **{name: _plain(value) for name, value in given.items()})
        except ValidationError as error:
            raise ValueError(sentence(error, cls.__name__, adapter(made))) from None

    made.__init__ = __init__
    return made


def _from_mapping(cls: type, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
    """Strict are the fields; the class itself may be given as a mapping."""
    return {**handler(source), "strict": False}  # type: ignore[misc,return-value]


def _plain(value: Any) -> Any:
    """numpy's numbers are numbers."""
    return value.item() if isinstance(value, numbers.Number) and hasattr(value, "item") else value


@functools.cache
def adapter(kind: Any) -> TypeAdapter[Any]:
    """pydantic's adapter of a type, made once."""
    return TypeAdapter(kind, config=None if dataclasses.is_dataclass(kind) else CONFIG)


@overload
def check(kind: type[T], value: Any, where: str) -> T: ...
@overload
def check(kind: Any, value: Any, where: str) -> Any: ...
def check(kind: Any, value: Any, where: str) -> Any:
    """`value` as `kind`: a class under `@settings` from a mapping, or any annotated type.

    where: what the value is or came from ("config/mine.yaml"), the beginning of the error. Raises ValueError in one
    sentence naming key, value and what would be right; for an unknown key, the one that may have been meant.
    """
    try:
        return adapter(kind).validate_python(value)
    except ValidationError as error:
        raise ValueError(sentence(error, where, adapter(kind))) from None


# ---- pydantic's errors in one sentence -----------------------------------------------------------------


def sentence(error: ValidationError, where: str, of: TypeAdapter[Any] | None = None) -> str:
    """The first of pydantic's errors in one sentence. of: whose error it is, to tell the keys that are known, and
    whether null would do."""
    details = error.errors(include_url=False)
    if typo := next((detail for detail in details if detail["type"] in _UNKNOWN), None):  # which explains a gap
        path, schema = _follow(of, typo["loc"][:-1])
        known, key = _keys(schema), str(typo["loc"][-1])
        within = [f"{name}.{key}" for name in known if key in _keys(_follow(of, [*typo["loc"][:-1], name])[1])]
        return unknown_key(_at(where, path), key, known, within)
    # of a union there are errors for each of its types: what is within the value tells more than its type does
    places = [_follow(of, detail["loc"])[0] for detail in details]
    inside = [index for index, place in enumerate(places) if place[: len(places[0])] == places[0]]
    deepest = max(inside, key=lambda index: len(places[index]))
    same = [detail for detail, place in zip(details, places, strict=True) if place == places[deepest]]
    path, schema = _follow(of, same[0]["loc"])
    if same[0]["type"] == "missing" and isinstance(path[-1], int):  # of a list of so many
        path, schema = _follow(of, same[0]["loc"][:-1])
        length = next(member["minItems"] for member in _members(schema) if "minItems" in member)
        same = [{**same[0], "type": "too_short", "ctx": {"min_length": length}}]
    return _sentence(same, where, path, schema)


def _sentence(errors: list[ErrorDetails], where: str, path: list[Any], schema: dict[str, Any]) -> str:
    """The sentence for what is wrong at one place; several errors are of the types of a union."""
    first = errors[0]
    kind, value, context = first["type"], first["input"], first.get("ctx", {})
    at, above, last = _at(where, path), _at(where, path[:-1]), path[-1] if path else ""
    if kind == "missing":
        return f"{above} lacks {last}"
    if kind == "invalid_key" or "[key]" in first["loc"]:
        wanted = "a key must be text, so write it in quotes"
        if isinstance(value, str):
            wanted = str(context["error"]) if kind == "value_error" else f"it {_wanted(first)}"
            wanted += _meant(value, re.findall(r"'(\w+)'", wanted))
        return f"{above} has the key {shown(value)}; {wanted}"
    if kind.startswith("union_tag"):
        tag, known = context["discriminator"].strip("'"), context.get("expected_tags") or _tags(schema)
        if kind == "union_tag_not_found":
            return f"{at} lacks {tag}, which must be one of {known}"
        meant = _meant(value[tag], re.findall(r"'(\w+)'", known))
        return f"{_at(where, [*path, tag])} is {shown(value[tag])}; it must be one of {known}{meant}"
    if kind == "value_error" and not isinstance(value, str | int | float | list | tuple | None):
        return f"{at}: {context['error']}"  # of fields together
    members = list(_members(schema))
    wanted = " or ".join(dict.fromkeys(map(_wanted, errors))).replace(" or must be ", " or ")
    if wanted.startswith("must be"):
        null = any(member.get("type") == "null" for member in members)
        wanted = f"it {wanted}, or null" if null else f"it {wanted}"
    choices = [choice for member in members for choice in _choices(member)]
    return f"{at} is {shown(value)}; {wanted}{_meant(value, choices) or _hint(value, first)}"


def unknown_key(where: str, key: str, known: Iterable[str], within: Iterable[str] = ()) -> str:
    """The sentence for a key that is none of `known`. within: keys of that name in the mappings below."""
    names, below = list(known), next(iter(within), None)
    told = f"known are {', '.join(names)}" if names else "none is known"
    meant = f"; did you mean {below!r}?" if below else _meant(key, names)
    return f"{where} has the unknown key {key!r}{meant or ';'} {told}"


def shown(value: Any) -> str:
    """A value as an error shows it, cut short where it is long."""
    if value is None:
        return "null"
    if isinstance(value, int) and value.bit_length() > 300:
        return "a number of more than 90 digits"
    text = _SHORT.repr(value)
    return text if len(text) <= 120 else f"{text[:100]}..."


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80
_SHORT.maxlong = 100
_SHORT.maxlevel = 3
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
    "too_short": "a list of at least {min_length}",
    "too_long": "a list of at most {max_length}",
    "string_too_short": "text that is not empty",
    "string_too_long": "text of at most {max_length} letters",
    "recursion_loop": "something that does not hold itself",
}


def _wanted(error: ErrorDetails) -> str:
    kind, context = error["type"], error.get("ctx", {})
    if kind == "value_error":
        return str(context["error"])
    if kind in _BOUNDS:
        bounds = {name: str(bound).removesuffix(".0") for name, bound in context.items()}
        return f"must be {_BOUNDS[kind].format(**bounds)}"
    known = _TYPES.get(kind.split("_")[0])
    return f"must be {known}" if known else error["msg"][:1].lower() + error["msg"][1:]


def _hint(value: Any, error: ErrorDetails) -> str:
    """Of a number that YAML takes for text, how to write it."""
    found = isinstance(value, str) and re.fullmatch(r"([-+]?\d+)(\.\d*)?e([-+]?)(\d+)", value, re.IGNORECASE)
    if not (found and error["type"].startswith(("float", "int"))):
        return ""
    whole, rest, sign, power = found.groups()
    return f"; YAML reads {value} as text, write {whole}{rest or '.0'}e{sign or '+'}{power}"


def _meant(given: Any, known: Iterable[Any]) -> str:
    """The hint at the one of `known` that may have been meant; "" for none."""
    names = [name for name in known if isinstance(name, str)]
    close = difflib.get_close_matches(given, names, n=1) if isinstance(given, str) else []
    return f"; did you mean {close[0]!r}?" if close else ""


def _at(where: str, path: Iterable[Any]) -> str:
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    if text.startswith("["):
        return f"{where}{text}"
    return f"{where}: {text}" if text else where


# ---- a type's JSON Schema, followed along an error's location ------------------------------------------


@functools.cache
def _schema(of: TypeAdapter[Any]) -> dict[str, Any]:
    return of.json_schema()


def _follow(of: TypeAdapter[Any] | None, location: Iterable[Any]) -> tuple[list[Any], dict[str, Any]]:
    """The keys that lead to a location, without the names of a union's types, and the JSON Schema of what is there."""
    if of is None:
        return list(location), {}
    schema = _schema(of)
    whole, path = schema.get("$defs", {}), []
    for part in location:
        members = list(_members({**schema, "$defs": whole}))
        below = [found for member in members if (found := _below(member, part)) is not None]
        tagged = [ref for member in members if (ref := member.get("discriminator", {}).get("mapping", {}).get(part))]
        if tagged:
            schema = {"$ref": tagged[0]}
            continue
        if below:
            schema = below[0]
        if below or not (part == "[key]" or any(_is_union(member) for member in members)):
            path.append(part)
    return path, {**schema, "$defs": whole}


def _members(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The schema and, of a union, that of each of its types, references resolved."""
    whole = schema.get("$defs", {})
    if "$ref" in schema:
        schema = whole[schema["$ref"].rpartition("/")[2]]
    yield schema
    for member in [*schema.get("anyOf", []), *schema.get("oneOf", [])]:
        yield from _members({**member, "$defs": whole})


def _is_union(schema: dict[str, Any]) -> bool:
    """Whether errors name the one of several types that they are of; null is no type of its own."""
    return sum(member.get("type") != "null" for member in schema.get("anyOf", [])) > 1


def _below(schema: dict[str, Any], part: Any) -> dict[str, Any] | None:
    """The schema of a key or an index; None for one that there cannot be."""
    if isinstance(part, int) and schema.get("type") == "array":
        items = schema.get("prefixItems", [])
        return items[part] if part < len(items) else schema.get("items", {})
    if part in schema.get("properties", {}):
        return schema["properties"][part]
    values = schema.get("additionalProperties")
    return values if isinstance(values, dict) and part != "[key]" else None


def _keys(schema: dict[str, Any]) -> list[str]:
    return [name for member in _members(schema) for name in member.get("properties", {})]


def _tags(schema: dict[str, Any]) -> str:
    tags = [tag for member in _members(schema) for tag in member.get("discriminator", {}).get("mapping", {})]
    return ", ".join(map(repr, tags))


def _choices(schema: dict[str, Any]) -> list[Any]:
    return [*schema.get("enum", []), *([schema["const"]] if "const" in schema else [])]
