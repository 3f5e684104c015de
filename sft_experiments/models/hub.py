"""The Hugging Face Hub, asked with a time limit: is it there, may we read it, which commit is it. Light to import."""

import os
import socket
import threading
from typing import Literal, Optional
from urllib.parse import urlparse

from sft_experiments.errors import SftError

TIMEOUT_SECONDS = 2.0  # upstream retries for a minute and more; a user at the shell wants to know now
Kind = Literal["model", "dataset"]


def hub_is_offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids any request."""
    return os.environ.get("HF_HUB_OFFLINE", "").strip().upper() in {"1", "ON", "YES", "TRUE"}


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT") or "https://huggingface.co"


def hub_answers(timeout: float = TIMEOUT_SECONDS) -> bool:
    """Whether the Hub's host accepts a connection within ``timeout`` seconds, name lookup included."""
    if hub_is_offline():
        return False
    url = urlparse(_endpoint())
    answered = threading.Event()
    address = (url.hostname or "", url.port or (443 if url.scheme == "https" else 80))

    def connect() -> None:
        try:
            socket.create_connection(address, timeout=timeout).close()
            answered.set()
        except OSError:
            return

    thread = threading.Thread(target=connect, daemon=True)  # a name lookup knows no time limit, so it is left behind
    thread.start()
    thread.join(timeout)
    return answered.is_set()


def hub_commit(kind: Kind, name: str, revision: Optional[str], error_class: type[SftError]) -> Optional[str]:
    """The commit that ``revision`` (default: the main branch) is now, or None when the Hub cannot be asked.

    Raises ``error_class`` when the Hub answers that the repository or revision does not exist, or that it is gated.
    """
    if not hub_answers():
        return None
    from huggingface_hub import HfApi  # slow: its HTTP client, 0.5 s

    # slow: with it
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        info = HfApi(endpoint=_endpoint()).repo_info(name, repo_type=kind, revision=revision, timeout=TIMEOUT_SECONDS)
    except GatedRepoError as error:
        page = f"https://huggingface.co/{'datasets/' if kind == 'dataset' else ''}{name}"
        raise error_class(f"{name} is gated: accept its conditions at {page}, then `hf auth login`") from error
    except RevisionNotFoundError as error:
        raise error_class(f"{name} has no revision {revision!r} on the Hub") from error
    except RepositoryNotFoundError as error:
        raise error_class(f"{name} is no {kind} on the Hub, or it is private: then `hf auth login` helps") from error
    except (HfHubHTTPError, OSError):  # the Hub is there but does not serve us: as good as unreachable
        return None
    return str(info.sha)
