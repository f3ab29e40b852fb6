"""What is known about licences of models as to training another model on their answers; from their texts, by hand.

As they were known when this was written; terms change. No legal advice; what is not listed is said to be unknown.
"""

from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import yaml
from huggingface_hub.repocard import metadata_load

from kdsuite.runtime import hub

UNKNOWN = "unknown"
CARD = "README.md"


class Terms(NamedTuple):
    """What a licence says about it; `warns` where it forbids that, or forbids it for some uses."""

    text: str
    warns: bool = False


NOT_KNOWN = Terms("what these terms say about training on its outputs is not known here; read them")
FREE = Terms("does not restrict training on its outputs")
LLAMA = Terms(
    "allows training on its outputs, if the name of what is trained begins with Llama, 'Built with Llama' is shown and "
    "the licence goes along"
)
QWEN = Terms("allows training on its outputs, if 'Built with Qwen' or 'Improved using Qwen' is shown")
COMPETING = "forbid using its outputs to develop models that compete with the provider's"
LICENCES = {  # by the hub's identifiers: `license`, or `license_name` where that is other
    **dict.fromkeys(["apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0", "cc0-1.0", "unlicense"], FREE),
    "llama2": Terms(
        "forbids using its outputs to improve any other language model than Llama 2 and its derivatives", True
    ),
    "llama3": Terms(
        "forbids using its outputs to improve any other language model than Llama 3 and its derivatives", True
    ),
    **dict.fromkeys(["llama3.1", "llama3.2", "llama3.3", "llama4"], LLAMA),
    "gemma": Terms(
        "allows it, but what is trained on its outputs is a Model Derivative: Gemma's terms and their Prohibited Use "
        "Policy apply to it and go along"
    ),
    "qwen": QWEN,
    "qwen-research": QWEN._replace(text=f"{QWEN.text}, and for research only, not commercially", warns=True),
}
SERVICES = {  # by the ending of the host's name
    "openai.com": Terms(f"OpenAI's terms {COMPETING}", True),
    "anthropic.com": Terms(f"Anthropic's terms {COMPETING}", True),
    "googleapis.com": Terms(f"the Gemini API's terms {COMPETING}", True),
}


def stated(where: str) -> dict[str, str]:
    """What a model's card, in its folder or the hub's cache, says of its licence: the hub's `license` and, where that
    is other, `license_name` and `license_link`.
    """
    path = Path(where) / CARD if Path(where).is_dir() else hub.cached(where, CARD)
    about: dict[str, Any] = {}
    with suppress(OSError, ValueError, yaml.YAMLError):  # what is no card says nothing
        about = (metadata_load(path) or {}) if path and path.exists() else {}
    said = {name: str(about[name]) for name in ("license", "license_name", "license_link") if about.get(name)}
    return said if "license" in said else {"license": UNKNOWN}


def licence_of(where: str) -> str:
    """The licence by which a model is to be had, as it is called."""
    said = stated(where)
    return said.get("license_name", said["license"]) if said["license"] == "other" else said["license"]


def terms_of(licence: str) -> Terms:
    return LICENCES.get(licence.lower(), NOT_KNOWN)


def terms_of_service(url: str) -> Terms | None:
    """Those of a provider that answers at an address; None where it is none of those listed."""
    host = urlsplit(url).hostname or ""
    return next((terms for end, terms in SERVICES.items() if host == end or host.endswith(f".{end}")), None)
