"""Rows of a task's splits where they are not official files: from the hub, or generated."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from kdsuite.config import TaskSettings, looks_local
from kdsuite.errors import DataError, SettingsError, first_line

Row = dict[str, Any]

GENERATED_SIZES = {"train_size": 1000, "dev_size": 200, "validation_size": 300}


def hub_rows(settings: TaskSettings, split: str, hub_config: str | None = None) -> Any:
    """The rows of a split of a data set on the hub, by id and revision.

    DataError says what could not be had and how to do without the hub.
    """
    if looks_local(settings.source):
        raise DataError(f"no data folder {settings.source}; give one with the official files, or a hub id")
    import datasets
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub import HfApi

    from kdsuite.runtime import hub

    try:
        return datasets.load_dataset(settings.source, hub_config, split=split, revision=settings.revision)
    except (OSError, ValueError, RuntimeError, hub.HTTP_ERROR) as error:
        reported: BaseException = error
        if isinstance(error, DatasetNotFoundError):  # all that the library knows; the hub knows why
            try:
                HfApi().auth_check(settings.source, repo_type="dataset")
            except (OSError, ValueError, hub.HTTP_ERROR) as refusal:
                reported = refusal
        reason, advice = hub.explain(reported) or (first_line(error), "check the name")
        raise DataError(
            f"data set {settings.source!r} is no folder here and cannot be had from the hub: {reason}; {advice}, "
            "or point `source` at a folder with the official files"
        ) from None


def generated_rows(corpus: str, settings: TaskSettings, split: str) -> list[Row]:
    """The rows of a generated corpus (a function of `extras.offline.corpora`), those of `train`
    (with room for dev and for the teacher's own examples) or `validation`.

    One generation feeds both splits: its first rows are the reported split, the rest is for training, cut
    where a passage ends, so that no text is in both.
    """
    if settings.revision is not None:
        raise SettingsError("generated data has no revision; remove the key or name a hub data set as source")
    held_out = settings.validation_size or GENERATED_SIZES["validation_size"]
    train = max(settings.train_size or GENERATED_SIZES["train_size"], settings.teacher_training.train_size or 0)
    slack = 8  # questions of the passage that straddles a cut
    total = held_out + train + (settings.dev_size or GENERATED_SIZES["dev_size"]) + 3 * slack
    generate = getattr(import_module("kdsuite.extras.offline.corpora"), corpus)
    rows = generate(total, settings.sample_seed)
    cut = held_out
    while cut < len(rows) and rows[cut].get("context", cut) == rows[cut - 1].get("context"):
        cut += 1
    return rows[:cut] if split == "validation" else rows[cut:]
