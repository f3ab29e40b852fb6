"""YAML as its specification has it: a key stands once in a mapping. PyYAML keeps the last one in silence."""

from __future__ import annotations

from typing import Any

import yaml
from yaml.composer import ComposerError

MERGE = "tag:yaml.org,2002:merge"  # `<<`, which brings in the keys of another mapping; own keys come before those


def load(text: str) -> Any:
    """The content of a YAML document, of plain values only. yaml.YAMLError, also where a key is given twice."""
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


class _Loader(yaml.SafeLoader):
    """Looks at every mapping when it is read, before merges are resolved: what they bring in may be overridden."""

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
                raise ComposerError(problem=problem, problem_mark=key.start_mark)
            lines[value] = line
        return node
