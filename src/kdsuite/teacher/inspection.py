"""What lies in the teacher cache: for which teacher and data, how good, how large, and whether it is whole."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdsuite.store.files import folder_bytes, read_json, sha256_file
from kdsuite.store.layout import ANSWERS, CACHES, MANIFEST, QUALITY


@dataclass(frozen=True)
class Inspection:
    """Lines for people, and the files that are not what was written ("path: problem")."""

    lines: list[str]
    damaged: list[str]


def inspect(results: Path, verify: bool = False) -> Inspection:
    """Describe every cache of a results folder; `verify` reads all files again and compares their hashes."""
    lines, damaged = [], []
    for folder in sorted(p.parent for p in (results / CACHES).glob(f"*/*/{MANIFEST}")):
        title = folder.relative_to(results).as_posix()
        try:
            lines += [title, *(f"  {line}" for line in _describe(folder))]
        except (ValueError, KeyError, TypeError):
            lines += [title, f"  {MANIFEST} cannot be read"]
            damaged.append(f"{title}/{MANIFEST}: cannot be read")
            continue
        if verify:
            found = [f"{title}/{problem}" for problem in _altered(folder)]
            lines.append("  " + ("; ".join(found) if found else "every file is as it was written"))
            damaged += found
    return Inspection(lines or [f"no teacher outputs in {results}"], damaged)


def _describe(folder: Path) -> list[str]:
    manifest, quality = read_json(folder / MANIFEST), _quality(folder)
    key, shards = manifest["key"], manifest["shards"]
    examples, positions = sum(s["examples"] for s in shards), sum(s["positions"] for s in shards)
    state = "complete" if manifest["complete"] else "not complete"
    lines = [
        f"{state}: {examples:,} examples, {positions:,} target positions, {folder_bytes(folder) / 1e6:,.1f} MB",
        f"teacher: {_teacher(key)}; data: {key['data']['source']} ({key['data']['fingerprint'][:8]})",
        f"kept: {_outputs(key['outputs'])}",
    ]
    if "metric" in quality:
        lines.append(
            f"quality: {quality['metric']} {quality[quality['metric']]:.1f} on {quality['n']:,} examples; "
            f"{quality['kept_share']:.0%} of the answers are kept"
        )
    lines += [
        f"{student}{f' ({model})' if (model := share.get('model')) else ''}: {share['aligned']:.1%} of target "
        f"positions, {share['vocabulary']:.1%} of the vocabulary, {share['mass']:.1%} of the probability"
        for student, share in quality.get("coverage", {}).items()
    ]
    return lines


def _quality(folder: Path) -> dict[str, Any]:
    path = folder / QUALITY
    return read_json(path) if path.exists() else {}


def _teacher(key: dict[str, Any]) -> str:
    model = key["teacher"]["model"]
    revision = f" at {model['revision']}" if model["revision"] else ""
    tuned = "fine-tuned, " if "training" in key["teacher"] else ""
    return f"{model['name']}{revision} ({tuned}{key['dtype']})"


def _outputs(outputs: dict[str, Any]) -> str:
    temperatures = ", ".join(f"{t:g}" for t in (1.0, *outputs["temperatures"]))
    parts = [f"{outputs['top_k']} tokens per position ({outputs['dtype']}), exact at T = {temperatures}"]
    if outputs["layers"]:
        parts.append(f"hidden states of layers {', '.join(map(str, outputs['layers']))}")
    if outputs["labels"]:
        parts.append(f"scores of {outputs['labels']} labels")
    return "; ".join(parts)


def _altered(folder: Path) -> list[str]:
    """Files of a cache whose content is not what its manifest or quality report says."""
    expected = {shard["file"]: shard["sha256"] for shard in read_json(folder / MANIFEST)["shards"]}
    quality = _quality(folder)
    if "answers_sha256" in quality:
        expected[ANSWERS] = quality["answers_sha256"]
    problems = []
    for name, sha256 in expected.items():
        path = folder / name
        if not path.exists():
            problems.append(f"{name}: missing")
        elif sha256_file(path) != sha256:
            problems.append(f"{name}: altered")
    return problems
