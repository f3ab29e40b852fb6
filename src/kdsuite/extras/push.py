"""An exported folder as a repository on the hub. Only what `huggingface_hub` sends leaves this machine, and the token
is in its requests alone.
"""

from pathlib import Path

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from kdsuite.config.files import read_environment
from kdsuite.errors import KdsuiteError, SettingsError, first_line
from kdsuite.models.source import base_of
from kdsuite.runtime import hub


def check(repo: str) -> None:
    """SettingsError, before any work, where a push to OWNER/NAME cannot succeed: its form, offline mode, no token."""
    try:
        validate_repo_id(repo)
    except HFValidationError:
        repo = ""
    if repo.count("/") != 1:
        raise SettingsError("--push takes OWNER/NAME, a repository of the hub")
    if constants.is_offline_mode():
        raise SettingsError(f"nothing is pushed to {repo}: HF_HUB_OFFLINE is set; take that away, or leave out --push")
    read_environment(Path(".env"))
    if not get_token():
        raise SettingsError(
            f"nothing can be pushed to {repo} without a token; put HF_TOKEN, with write access, into .env"
        )


def push(folder: Path, repo: str, title: str) -> str:
    """Upload all files of a folder in a commit named `title`; returns the address. A new repository is private.

    SettingsError for an adapter that nobody else can load, KdsuiteError says why the hub did not take it.
    """
    if (base := base_of(folder)) and base.is_folder:
        raise SettingsError(
            f"{folder} is written, but not pushed: it is an adapter for {base.where}, a folder that others do not "
            "have; export it with --merge"
        )
    api = HfApi()
    try:
        address = api.create_repo(repo, private=True, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message=title)
    except (OSError, ValueError, hub.HTTP_ERROR) as error:  # ValueError: of what the hub says of the card
        status = getattr(getattr(error, "response", None), "status_code", None)
        reason, remedy = hub.explain(error) or (first_line(error), "mend that, or try again later")
        if status in (401, 403):
            reason, remedy = "this token may not write there", "take one with write access, or another OWNER"
        raise KdsuiteError(f"{folder} is written, but not pushed to {repo}: {reason}; {remedy}") from None
    return str(address)
