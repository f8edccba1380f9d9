"""Uploads a folder to the Hugging Face hub, through huggingface_hub (the extra ``hub``).

The library finds the token by itself (``HF_TOKEN``, or what ``hf auth login`` saved). It is never read, kept or shown
here. Every failure is one line.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from fastgen.errors import InputError, needs

if TYPE_CHECKING:
    from huggingface_hub import HfApi


_LIBRARIES: Final = {"huggingface_hub", "hf_xet", "httpx", "httpx2", "httpcore", "requests", "urllib3"}
_LOGIN: Final = "set HF_TOKEN or run 'hf auth login'"
_REMEDIES: Final = {
    401: f"the hub refuses the token (401); {_LOGIN} with one that is valid",
    403: "the token may not write there (403); use one with write access, or another name",
    404: "the hub has no such user or data set (404); check the name and the token's access",
    429: "the hub limits requests (429); try again later",
}


def connect(repo: str, endpoint: str | None = None) -> HfApi:
    """Check, before any work is done, that an upload is possible: library, name, network, token.

    :raises InputError: the first of them that fails.
    """
    with needs("huggingface_hub", "hub", "--push-to-hub:"):
        from huggingface_hub import HfApi, hf_hub_url
    with _in_one_line(repo):
        hf_hub_url(repo, "README.md", repo_type="dataset")  # sends nothing; refuses what is no name
        api = HfApi(endpoint=endpoint)
        api.whoami()
    return api


def upload(api: HfApi, repo: str, folder: Path, names: Sequence[str], *, private: bool) -> str:
    """Upload these files of the folder in one commit. A missing data set is created. Returns its address.

    :raises InputError: the hub or the network refuses; the folder is whole all the same, and the message says so.
    """
    with _in_one_line(repo, f"; {folder} is whole, so only the upload is left"):
        url = api.create_repo(repo, repo_type="dataset", private=private, exist_ok=True)
        api.upload_folder(
            repo_id=url.repo_id,  # with the user's name, where none was given
            repo_type="dataset",
            folder_path=folder,
            allow_patterns=list(names),
            commit_message="Upload data and card with fastgen",
        )
    return str(url)


@contextmanager
def _in_one_line(repo: str, consolation: str = "") -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if not isinstance(error, OSError) and type(error).__module__.partition(".")[0] not in _LIBRARIES:
            raise
        raise InputError(f"--push-to-hub {repo}: {_reason(error)}{consolation}") from None


def _reason(error: Exception) -> str:
    """By kind and status alone: the library's messages have many lines and quote what was sent."""
    from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled

    if isinstance(error, HFValidationError):
        return "is no data set's name; give one such as me/my-data"
    if isinstance(error, LocalTokenNotFoundError):
        return f"there is no token; {_LOGIN}"
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE keeps the library from the network; unset it"
    response: Any = getattr(error, "response", None)  # of whichever HTTP client the library's version has
    status = getattr(response, "status_code", None)
    if status is not None:
        return _REMEDIES.get(status, f"the hub answered {status}; try again later")
    return f"the hub cannot be reached ({type(error).__name__}); check the network"
