"""What lies in the teacher cache: for which teacher and data, how good, how large, and whether it is whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdsuite.store.artefact import altered
from kdsuite.store.files import folder_bytes, read_json
from kdsuite.store.layout import ANSWERS, CACHES, MANIFEST, QUALITY


def inspect(results: Path, verify: bool = False) -> tuple[list[str], list[str]]:
    """Lines for people about every cache of a results folder, and the files that are not what was written.

    The latter as "path: problem"; `verify` reads all files again and compares their hashes.
    """
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
    return lines or [f"no teacher outputs in {results}"], damaged


def _describe(folder: Path) -> list[str]:
    manifest, quality = read_json(folder / MANIFEST), _quality(folder)
    key, shards, outputs = manifest["key"], manifest["shards"], manifest["key"]["outputs"]
    examples, positions = (sum(shard[what] for shard in shards) for what in ("examples", "positions"))
    state = "complete" if manifest["complete"] else "not complete"
    model = key["teacher"]["model"]
    revision = f" at {model['revision']}" if model["revision"] else ""
    tuned = "fine-tuned, " if "training" in key["teacher"] else ""
    temperatures = ", ".join(f"{t:g}" for t in (1.0, *outputs["temperatures"]))
    kept = f"{outputs['top_k']} tokens per position ({outputs['dtype']}), exact at T = {temperatures}"
    if outputs["layers"]:
        kept += f"; hidden states of layers {', '.join(map(str, outputs['layers']))}"
    if outputs["labels"]:
        kept += f"; scores of {outputs['labels']} labels"
    lines = [
        f"{state}: {examples:,} examples, {positions:,} target positions, {folder_bytes(folder) / 1e6:,.1f} MB",
        f"teacher: {model['name']}{revision} ({tuned}{key['dtype']}); "
        f"data: {key['data']['source']} ({key['data']['fingerprint'][:8]})",
        f"kept: {kept}",
    ]
    if "metric" in quality:
        lines.append(
            f"quality: {quality['metric']} {quality[quality['metric']]:.1f} on {quality['n']:,} examples; "
            f"{quality['kept_share']:.0%} of the answers are kept"
        )
    for student, share in quality.get("coverage", {}).items():
        named = f"{student} ({share['model']})" if share.get("model") else student
        lines.append(
            f"{named}: {share['aligned']:.1%} of target positions, {share['vocabulary']:.1%} of the vocabulary, "
            f"{share['mass']:.1%} of the probability"
        )
    return lines


def _quality(folder: Path) -> dict[str, Any]:
    path = folder / QUALITY
    return read_json(path) if path.exists() else {}


def _altered(folder: Path) -> list[str]:
    """Files of a cache whose content is not what its manifest or quality report says."""
    expected = {shard["file"]: shard["sha256"] for shard in read_json(folder / MANIFEST)["shards"]}
    if "answers_sha256" in (quality := _quality(folder)):
        expected[ANSWERS] = quality["answers_sha256"]
    bad = altered(folder, expected)
    return [f"{name}: {'altered' if (folder / name).exists() else 'missing'}" for name in bad]
