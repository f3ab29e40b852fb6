"""The hub of models and data sets: whether it can be reached, and what its errors mean.

The library retries for some twenty seconds per file when there is no network, even for what it has in its
cache. So the network is tried once; without it, the library is told to be offline, which is what setting
HF_HUB_OFFLINE does. Its errors say much; here each is one reason and one remedy.
"""

import errno
import os
import socket
import sys
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit
from urllib.request import getproxies

from huggingface_hub import constants, errors, try_to_load_from_cache

HTTP_ERROR = cast(type[Exception], errors.HfHubHTTPError.__bases__[0])  # of the HTTP library under the hub library
REACH_SECONDS = 3.0
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


def reachable() -> bool:
    """Whether the hub's address takes connections (through a proxy: whether it would is not tried)."""
    if constants.is_offline_mode():
        return False
    address = urlsplit(constants.ENDPOINT)
    if address.scheme in getproxies():
        return True
    port = address.port or {"http": 80}.get(address.scheme, 443)
    try:
        socket.create_connection((address.hostname or "", port), timeout=REACH_SECONDS).close()
    except OSError:
        return False
    return True


def go_offline() -> None:
    """Have the hub library, and those built on it, use nothing but their caches in this process."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # for what is imported later, and for child processes
    constants.HF_HUB_OFFLINE = True
    if datasets := sys.modules.get("datasets"):
        datasets.config.HF_HUB_OFFLINE = True


def cached(repo: str, name: str, revision: str | None = None, kind: str | None = None) -> Path | None:
    """A file of a repository (`kind`: None for models, "dataset") in the hub library's cache; None if it is not."""
    try:
        found = try_to_load_from_cache(repo, name, revision=revision, repo_type=kind)
    except errors.HFValidationError:  # not the form of a hub id
        return None
    return Path(found) if isinstance(found, str) else None


def has_weights(repo: str, revision: str | None = None) -> bool:
    """Whether a model's weights, or the list of their files, are in the hub library's cache."""
    return any(cached(repo, name, revision) for name in WEIGHTS)


def explain(error: BaseException) -> tuple[str, str] | None:
    """Why something could not be had from the hub, and what to do; None if `error` is not about that."""
    causes = []
    cause: BaseException | None = error
    while cause is not None:  # libraries wrap what the hub said in less clear words
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    if any(isinstance(cause, OSError) and cause.errno == errno.ENOSPC for cause in causes):
        return "the disk is full", "free some space, or set HF_HOME to a folder on a larger disk"
    token = "this HF_TOKEN has no access to it" if os.environ.get("HF_TOKEN") else "there is no HF_TOKEN"
    not_reached = "the hub cannot be reached (no network, or HF_HUB_OFFLINE is set)"
    meanings = {
        errors.GatedRepoError: (
            f"it is gated, and {token}",
            "ask for access on its hub page and put HF_TOKEN into .env",
        ),
        errors.RevisionNotFoundError: ("the hub has no such revision of it", "correct or remove its revision"),
        errors.RepositoryNotFoundError: (
            "the hub has nothing of that name, or it is private",
            "check the name; for what is private put HF_TOKEN into .env",
        ),
        (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, ConnectionError): (
            f"it is not in the hub's cache, and {not_reached}",
            "connect once, or give a folder on disk",
        ),
        errors.HfHubHTTPError: (
            "the hub answered with status {status}",
            "try again later; the same command goes on where it stopped",
        ),
        HTTP_ERROR: (
            "the connection to the hub broke off",
            "check the network; the same command goes on with the download",
        ),
    }
    for kinds, (reason, remedy) in meanings.items():
        for cause in causes:
            if isinstance(cause, kinds):
                status = getattr(getattr(cause, "response", None), "status_code", "unknown")
                return reason.format(status=status), remedy
    return None
