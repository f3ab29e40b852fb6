"""docs/configuration.md, from the settings tree: `python -m kdsuite.config.reference > docs/configuration.md`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from inspect import getdoc
from typing import Any

from kdsuite.config import PRESETS, TaskSettings, presets, whole_tree
from kdsuite.config.plugins import METHODS, TASKS, plugins

HEAD = """\
# Configuration

Every key of a configuration file, generated from the settings tree by `make docs`. A key may stand in the YAML file,
in one of its `modes`, or on the command line: `--set tasks.sst2.train_size=100`. Later ones win: the file, the mode
(`--mode fast`), `.env` (see `.env.example`), `--set`. An unknown key is an error that names the nearest valid one.
"""
NAMES = {
    "string": "text",
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
    "object": "mapping",
    "null": "",
}
BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
Schema = dict[str, Any]


def configuration_reference() -> str:
    """The page, in Markdown: a table per section with values, default and meaning of each key."""
    schema = whole_tree().model_json_schema()
    paths: dict[str, list[str]] = {}
    _collect(schema, schema["$defs"], "", "Settings", paths)
    installed = ", ".join(f"`{name}` ({one.title})" for name, one in plugins(METHODS).items())
    kinds = {kind.Settings.__name__: name for name, kind in plugins(TASKS).items()}
    parts = [f"{HEAD}\nInstalled methods: {installed}. Installed kinds of tasks: {_list(kinds.values())}.\n"]
    for name, places in paths.items():
        section = schema if name == "Settings" else schema["$defs"][name]
        title = " and ".join(f"`{place}`" for place in dict.fromkeys(places) if place) or "Top level"
        text = "" if name == "Settings" else section.get("description", "").strip()
        rows = list(_rows(section))
        if name in kinds:
            if name == next(iter(kinds)):
                shared = [row for row in rows if row[0].strip("`") in TaskSettings.model_fields]
                parts += [f"## {title}\n\n{getdoc(TaskSettings)}\n\n{_table(shared)}", *map(_preset, presets())]
            rows = [row for row in rows if row[0].strip("`") not in TaskSettings.model_fields]
            title, text = f"{title} of kind `{kinds[name]}`", "" if rows else "No further keys.\n"
        if rows or text:
            parts.append("\n\n".join(filter(None, [f"## {title}", text, _table(rows) if rows else ""])))
    return "\n".join(parts)


def _preset(name: str) -> str:
    """What a preset fills in: its own file."""
    text = (PRESETS / f"{name}.yaml").read_text(encoding="utf-8").strip()
    return (
        f"## `preset: {name}`\n\nWhat it fills in, each key of which may be given otherwise.\n\n```yaml\n{text}\n```\n"
    )


def _list(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _collect(section: Schema, defs: Schema, place: str, name: str, paths: dict[str, list[str]]) -> None:
    """Where in the tree each section stands, in the tree's order."""
    paths.setdefault(name, []).append(place)
    for key, field in section["properties"].items():
        for more, inner in _sections(field):
            _collect(defs[inner], defs, f"{place}.{key}{more}".lstrip("."), inner, paths)


def _sections(field: Schema) -> list[tuple[str, str]]:
    """The names of the sections that a field holds, each behind what stands before its keys."""
    if isinstance(named := field.get("additionalProperties"), dict):  # a mapping of any names
        kinds = plugins(TASKS)
        if "oneOf" in named:
            return [(".NAME", kind.Settings.__name__) for kind in kinds.values()]
        return [(".NAME", inner) for _, inner in _sections(named)]
    if "oneOf" in field:  # one of several sections
        return [("", option["$ref"].rsplit("/", 1)[1]) for option in field["oneOf"]]
    options = [field, *field.get("anyOf", []), *field.get("allOf", [])]
    return [("", option["$ref"].rsplit("/", 1)[1]) for option in options if "$ref" in option][:1]


def _table(rows: list[tuple[str, str, str, str]]) -> str:
    lines = ["| key | values | default | meaning |", "| --- | --- | --- | --- |"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def _rows(section: Schema) -> Iterator[tuple[str, str, str, str]]:
    """Key, values, default and meaning; of sections inside, those that are described as a whole."""
    for key, field in section["properties"].items():
        description = field.get("description", "")
        if not (inner := _sections(field)) or description:
            meaning, said = _split(description)
            default = said or _default(field, key in section.get("required", []))
            values = "section, see below" if inner else _values(field)
            yield f"`{key}`", _escaped(values), _escaped(default), _escaped(meaning)


def _split(description: str) -> tuple[str, str]:
    """A description without the default that it ends with, and that default."""
    meaning, found, default = description.rpartition("; default")
    return (meaning, default.lstrip(": ")) if found else (description, "")


def _default(field: Schema, required: bool) -> str:
    if required:
        return "none: must be given"
    value = field.get("default")
    return "none" if value in (None, [], {}) else f"{value}"


def _values(field: Schema) -> str:
    """What a field may hold, in words."""
    if "anyOf" in field:
        return " or ".join(filter(None, map(_values, field["anyOf"])))
    if "enum" in field or "const" in field:
        return _list(field.get("enum", [field.get("const")]))
    if field.get("type") == "array":
        if "prefixItems" in field:
            return f"pair of {_values(field['prefixItems'][0])}"
        return f"list of: {_values(field['items'])}"
    bounds = [f"{sign} {field[name]:.12g}" for name, sign in BOUNDS.items() if name in field]
    return " ".join([NAMES[field["type"]], ", ".join(bounds)]).strip()


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    print(configuration_reference(), end="")
