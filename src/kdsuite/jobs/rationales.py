"""The teacher's reasons for the answers: asked once, kept beside its answers, learned by methods that ask for them."""

from dataclasses import replace
from typing import Any

from kdsuite.config import TEACHER
from kdsuite.errors import RunError
from kdsuite.jobs.bench import Bench, kept
from kdsuite.jobs.data import encoded_rationales, prompts_to_explain, splits
from kdsuite.jobs.models import journal, tell_tokens
from kdsuite.jobs.teaching import cache_folder, planned_methods, teacher_of
from kdsuite.jobs.transfer import transferred
from kdsuite.methods.base import Request
from kdsuite.runtime.memory import BatchSize
from kdsuite.store.artefact import Artefact
from kdsuite.store.files import atomic_write_rows, fingerprint, read_rows
from kdsuite.store.layout import RATIONALES
from kdsuite.store.parts import Parts
from kdsuite.store.spending import counted
from kdsuite.tasks.encoding import Encoded
from kdsuite.tasks.example import Example, canonical
from kdsuite.teacher.inspection import rationales_told
from kdsuite.teacher.local import OutputSettings


@kept
def rationale_examples(bench: Bench, name: str, role: str, request: Request) -> list[Encoded]:
    """The reasons in a role's tokens, but for empty ones and those that it cannot spell. RunError if there are none."""
    stored = _stored(bench, name, request)
    if stored.read() is None:
        raise RunError(f"the teacher's rationales of {name} are not there; run `kdsuite cache`")
    rows = read_rows(stored.path.with_suffix(".jsonl"))
    said = {row["id"]: (row["rationale"], row["whole"]) for row in rows if row["rationale"]}
    if found := encoded_rationales(bench, name, role, _explained(bench, name), request, said):
        return found
    raise RunError(f"none of the teacher's rationales of {name} can be learned by {role}; change dss.request")


def build_rationales(bench: Bench, name: str) -> None:
    """Let the teacher explain the answers of a task as the planned methods ask it to, unless that is done.

    The caller holds the task's lock.
    """
    settings, batch = bench.settings, BatchSize(bench.settings.models.teacher.batch_size)
    wanted = [one.request(settings, point) for one in planned_methods(bench) for point in one.points(settings)]
    for request in dict.fromkeys(filter(None, wanted)):
        with counted(cache_folder(bench, name)):
            _build(bench, name, request, batch)


def _build(bench: Bench, name: str, request: Request, batch: BatchSize) -> None:
    stored, new_tokens = _stored(bench, name, request), request.max_new_tokens
    parts = Parts(stored.path.parent, f"explained-{stored.path.stem}", stored.key)
    if stored.read() is None:
        examples = _explained(bench, name)
        prompts = prompts_to_explain(bench, name, TEACHER, examples, request)

        def build(size: int) -> dict[int, Any]:
            teacher = replace(teacher_of(bench, name, OutputSettings()), max_new_tokens=new_tokens)
            batches = teacher.prompt_batches(prompts, new_tokens, size)
            return parts.work(batches, lambda some: teacher.rationales([prompts[i] for i in some]), work.advance)

        with bench.progress.work(f"rationales, {name}", len(prompts), "examples", done=len(parts.done)) as work:
            said = batch.fit(build, bench.choice.device, bench.progress.say)
        rows = []
        for i, example in enumerate(examples):
            text, whole = said[i]
            text = canonical(text.rstrip("\ufffd").strip())  # without a character that was cut
            rows.append({"id": example.id, "rationale": text, "whole": whole})
        texts = stored.path.with_suffix(".jsonl")
        atomic_write_rows(texts, rows)
        about: dict[str, Any] = {"request": request.text, "max_new_tokens": new_tokens, "examples": len(rows)}
        about["empty"], about["cut"] = sum(not r["rationale"] for r in rows), sum(not r["whole"] for r in rows)
        about["first"] = next((row["rationale"] for row in rows if row["rationale"]), "")
        stored.write([texts.name], **about)
        bench.forget(rationale_examples)
        bench.progress.say(f"{name}: {rationales_told(about)}")
    parts.clear()
    if bench.settings.models.served:
        journal(bench, name).clear()
        tell_tokens(bench)


def _stored(bench: Bench, name: str, request: Request) -> Artefact:
    """The reasons, kept with all that is known of the teacher's answers: what it was asked is all that is their own."""
    folder = cache_folder(bench, name)
    about = [folder.name, request.text, request.max_new_tokens]
    path = folder / RATIONALES.replace("*", fingerprint(about)[:16])
    return bench.artefact(path, about, "the teacher is asked again")


def _explained(bench: Bench, name: str) -> list[Example]:
    return [*splits(bench, name)["train"], *transferred(bench, name)]
