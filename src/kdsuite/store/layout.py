"""Names of the files of a teacher cache: `<results>/teacher_cache/<task>/<fingerprint>/…`."""

CACHES = "teacher_cache"
MANIFEST = "manifest.json"  # what the outputs depend on; the shards with their hashes and ids
ANSWERS = "answers.jsonl"  # the teacher's answers, raw and cleaned
QUALITY = "quality.json"  # how good they are, and how much of the outputs reaches each student
