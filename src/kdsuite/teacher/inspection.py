"""What lies in the teacher cache: for which teacher and data, how good, how large, and whether it is whole."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdsuite.store.artefact import altered
from kdsuite.store.files import TEMPORARY, folder_bytes, read_json
from kdsuite.store.layout import ANSWERS, CACHES, MANIFEST, QUALITY, RATIONALES


def inspect(results: Path, verify: bool = False) -> tuple[list[str], list[str]]:
    """Lines for people about every cache of a results folder, and the files that are not what was written.

    The latter as "path: problem"; `verify` reads all files again and compares their hashes.
    """
    lines, damaged = [], []
    found = {p.parent for name in (MANIFEST, RATIONALES) for p in (results / CACHES).glob(f"*/*/{name}")}
    for folder in sorted(path for path in found if not path.name.startswith(TEMPORARY)):
        title, problems, quality = folder.relative_to(results).as_posix(), [], {}
        lines.append(title)
        for path in [*folder.glob(QUALITY), *folder.glob(MANIFEST), *sorted(folder.glob(RATIONALES))]:
            try:
                about = read_json(path)
                if path.name == QUALITY:
                    quality = about
                    continue
                told, files = _outputs(folder, about, quality) if "shards" in about else _texts(about)
                lines += [f"  {line}" for line in told]
            except FileNotFoundError:  # another process makes it anew
                continue
            except (ValueError, KeyError, TypeError, AttributeError):
                lines.append(f"  {path.name} cannot be read")
                damaged.append(f"{title}/{path.name}: cannot be read")
                continue
            bad = altered(folder, files) if verify else []
            problems += [f"{title}/{name}: {'altered' if (folder / name).exists() else 'missing'}" for name in bad]
        if verify:
            lines.append("  " + ("; ".join(problems) or "every file that can be read is as it was written"))
        damaged += problems
    return lines or [f"no teacher outputs in {results}"], damaged


Described = tuple[list[str], dict[str, str]]  # lines, and the files that they are about with their hashes


def _texts(about: dict[str, Any]) -> Described:
    """The teacher's reasons; or its answers to inputs without targets."""
    if "request" not in about:
        return [f"{about['kept']:,} of {about['answers']:,} answers to inputs without target are kept"], about["files"]
    first = " ".join(about["first"].split())[:100]
    return [f"{rationales_told(about)}; asked: {about['request']}; the first: {first}"], about["files"]


def rationales_told(about: Mapping[str, Any]) -> str:
    """How many of the teacher's reasons are empty, and how many were cut."""
    shares = (f"{about[what] / about['examples']:.0%}" for what in ("empty", "cut"))
    return "{} rationales, {} of them empty (not learned), {} cut at {} tokens".format(
        f"{about['examples']:,}", *shares, about["max_new_tokens"]
    )


def _outputs(folder: Path, manifest: dict[str, Any], quality: dict[str, Any]) -> Described:
    """The outputs at target positions, and how good the answers beside them are."""
    files = {shard["file"]: shard["sha256"] for shard in manifest["shards"]}
    if "answers_sha256" in quality:
        files[ANSWERS] = quality["answers_sha256"]
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
    if outputs.get("draws"):
        kept += f"; drawn entries: {', '.join(outputs['draws'])}"
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
    imported = quality.get("imported", {}) | ({"outputs": manifest["imported"]} if "imported" in manifest else {})
    for what, where in sorted(imported.items()):
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
    return lines, files
