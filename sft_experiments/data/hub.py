"""The Hugging Face Hub, asked with a time limit: is it there, may we read it, which commit is it. Light to import."""

import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal, Optional
from urllib.parse import urlparse

from sft_experiments.data.conversation import Origin
from sft_experiments.data.sources import sources_of
from sft_experiments.errors import ConfigError, DataError, SftError
from sft_experiments.schema import DatasetConfig, DataSource, SourceConfig

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
    from huggingface_hub import HfApi
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


def pin_revisions(dataset: DatasetConfig) -> DatasetConfig:
    """A copy in which Hub sources name the commit that their branch or tag is now, where the Hub can be asked."""
    if dataset.source is not DataSource.mixture:
        return replace(dataset, hub_revision=_pinned(dataset))
    parts = dict(zip(sorted(dataset.mixture), sources_of(dataset), strict=True))
    pinned = {name: {**dataset.mixture[name], "hub_revision": _pinned(part)} for name, part in parts.items()}
    return replace(dataset, mixture=pinned)


def _pinned(source: SourceConfig) -> Optional[str]:
    if source.source is not DataSource.hub or not source.hub_id:
        return source.hub_revision
    return hub_commit("dataset", source.hub_id, source.hub_revision, DataError) or source.hub_revision


def read_hub_rows(source: SourceConfig, split: str) -> Iterator[tuple[Origin, dict[str, Any]]]:
    """Rows of one split of a Hub data set, from the local copy without a network; ``DataError`` when there is none."""
    split_name = getattr(source, f"{split}_split")
    if not split_name:
        return
    if not source.hub_id:
        raise ConfigError("dataset.hub_id is not set; give owner/name")
    rows = _load(source, split_name, reachable=hub_answers())
    where = f"{source.hub_id}@{(source.hub_revision or 'local copy')[:12]}/{split_name}"
    for number, row in enumerate(rows, start=1):
        yield Origin(where, number), row


def _load(source: SourceConfig, split_name: str, reachable: bool) -> Any:
    import datasets

    try:
        return datasets.load_dataset(
            str(source.hub_id),
            source.hub_config,
            split=split_name,
            revision=source.hub_revision,
            download_config=datasets.DownloadConfig(local_files_only=not reachable),
        )
    except (OSError, ValueError) as error:  # not cached, no such subset or split: datasets says which
        why = "it cannot be loaded" if reachable else "the Hub cannot be reached and there is no local copy"
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"dataset.hub_id={source.hub_id}, split {split_name!r}: {why} ({first})") from error
