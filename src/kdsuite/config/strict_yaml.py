"""YAML as its specification has it: a key stands once in a mapping. PyYAML keeps the last one in silence."""

from __future__ import annotations

from typing import Any

import yaml

from kdsuite.errors import first_line

MERGE = "tag:yaml.org,2002:merge"  # `<<`, which brings in the keys of another mapping; own keys come before those


def load(text: str, place: str) -> Any:
    """The content of a YAML document, of plain values only.

    ValueError, with its place and line, for what is none: also where a key is given twice, or a date does not exist.
    """
    try:
        return _Loader(text).get_single_data()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or first_line(error)
        raise ValueError(f"{place}{where}: not valid YAML ({problem})") from None


class _Loader(yaml.SafeLoader):
    """Looks at every mapping when it is read, before merges are resolved: what they bring in may be overridden."""

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except ValueError as error:
            raise yaml.MarkedYAMLError(problem=f"{node.value!r}: {error}", problem_mark=node.start_mark) from None

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[Any, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue  # such a key is refused later: it cannot be looked up
            value = key.value if key.tag == MERGE else self.construct_object(key)
            line = key.start_mark.line + 1
            if value in lines:
                where = f"in lines {lines[value]} and {line}" if line > lines[value] else f"in line {line}"
                problem = f"the key {key.value!r} is given twice, {where}; keep one of them"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            lines[value] = line
        return node
