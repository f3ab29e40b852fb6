"""What lies in the teacher cache: for which teacher and data, how good, how large, and whether it is whole."""

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
            manifest = read_json(folder / MANIFEST)
            quality = read_json(folder / QUALITY) if (folder / QUALITY).exists() else {}
            lines += [title, *(f"  {line}" for line in _describe(folder, manifest, quality))]
        except (ValueError, KeyError, TypeError):
            lines += [title, f"  {MANIFEST} cannot be read"]
            damaged.append(f"{title}/{MANIFEST}: cannot be read")
            continue
        if verify:
            expected = {shard["file"]: shard["sha256"] for shard in manifest["shards"]}
            if "answers_sha256" in quality:
                expected[ANSWERS] = quality["answers_sha256"]
            problems = {n: "altered" if (folder / n).exists() else "missing" for n in altered(folder, expected)}
            found = [f"{title}/{name}: {problem}" for name, problem in problems.items()]
            lines.append("  " + ("; ".join(found) if found else "every file is as it was written"))
            damaged += found
    return lines or [f"no teacher outputs in {results}"], damaged


def _describe(folder: Path, manifest: dict[str, Any], quality: dict[str, Any]) -> list[str]:
    key, shards, outputs = manifest["key"], manifest["shards"], manifest["key"]["outputs"]
    examples, positions = (sum(shard[what] for shard in shards) for what in ("examples", "positions"))
    state = "complete" if manifest["complete"] else "not complete"
    if not shards and "answers_sha256" in quality:
        state = "answers only"
    model = key["teacher"]["model"]
    revision = f" at {model['revision']}" if model.get("revision") else ""
    tuned = "fine-tuned, " if "training" in key["teacher"] else ""
    served, others = key["teacher"].get("served"), ", ".join(f"{t:g}" for t in outputs["temperatures"])
    exact = f"exact at T = 1{others and (', estimated at T = ' if served else ', ') + others}"
    kept = f"{outputs['top_k']} tokens per position ({outputs['dtype']}), {exact}"
    if outputs["layers"]:
        kept += f"; hidden states of layers {', '.join(map(str, outputs['layers']))}"
    if outputs["labels"]:
        kept += f"; scores of {outputs['labels']} labels"
    lines = [
        f"{state}: {examples:,} examples, {positions:,} target positions, {folder_bytes(folder) / 1e6:,.1f} MB",
        f"teacher: {model.get('name') or model['model']}{revision} ({tuned}{served or key['dtype']}); "
        f"data: {key['data']['source']} ({key['data']['fingerprint'][:8]})",
        *([f"kept: {kept}"] if shards else ()),
    ]
    for what, where in quality.get("imported", {}).items():
        lines.append(f"imported: {what} from {where['file']} ({where['sha256'][:8]})")
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
