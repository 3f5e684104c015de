"""Secrets never reach a file, a log, a tracker or an exception: everything written passes through here first.

Three things count as a secret: the value of an environment variable that is named like one (``HF_TOKEN``,
``WANDB_API_KEY``, ...), a string shaped like a known token, and the user part of a URL. In a config, also any value
whose key is named like a secret.
"""

import os
import re
from typing import Any

MASK = "<redacted>"
_SECRET_NAME = re.compile(r"(?:^|[_.\-])(?:token|api_?key|secret|password|passwd|credentials?)$", re.IGNORECASE)
_NOT_SECRET = re.compile(r"(?:control|pad|eos|bos|unk|image|stop|mask|sep|cls)_token$", re.IGNORECASE)
_SHAPES = re.compile(
    r"\bhf_[A-Za-z0-9]{20,}"  # Hugging Face
    r"|\bwandb_v1_[A-Za-z0-9_]{20,}"  # W&B, since 2025
    r"|\b(?:sk|pk)-[A-Za-z0-9_\-]{20,}"  # OpenAI, Anthropic and those that copied them
    r"|\bgh[pousr]_[A-Za-z0-9]{30,}|\bgithub_pat_[A-Za-z0-9_]{30,}"
    r"|\bAKIA[0-9A-Z]{16}\b"  # AWS access key id
)


_URL_USER = re.compile(r"(?<=://)[^/\s@'\"]+(?=@)")
_ASSIGNMENT = re.compile(r"(?P<key>[\w.\-]+)(?P<sep>\s*=\s*['\"]?|['\"]\s*:\s*['\"])(?P<value>[^\s,'\"]+)")
_SHORTEST = 8  # a shorter value of a secret variable ("none", "1") would mask ordinary text


def is_secret_name(name: str) -> bool:
    """Whether a key or environment variable is named like one that holds a secret."""
    return bool(_SECRET_NAME.search(name)) and not _NOT_SECRET.search(name)


def redact_text(text: str) -> str:
    """``text`` with every secret replaced by ``<redacted>``."""
    return _redact_text(text, _environment_secrets())


def _redact_text(text: str, secrets: list[str]) -> str:
    for value in secrets:
        text = text.replace(value, MASK)
    text = _URL_USER.sub(MASK, _SHAPES.sub(MASK, text))
    return _ASSIGNMENT.sub(_redact_assignment, text)


def redact(content: Any, name: str = "") -> Any:
    """A copy of nested dicts, lists and scalars without secrets; keys named like a secret lose their value."""
    return _redact(content, name, _environment_secrets())


def _redact(content: Any, name: str, secrets: list[str]) -> Any:
    if isinstance(content, dict):
        return {key: _redact(value, str(key), secrets) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_redact(value, name, secrets) for value in content]
    if isinstance(content, str):
        return MASK if content and is_secret_name(name) else _redact_text(content, secrets)
    return content


def _environment_secrets() -> list[str]:
    """Values of the secret environment variables, longest first (one may contain another)."""
    values = {value for name, value in os.environ.items() if is_secret_name(name) and len(value) >= _SHORTEST}
    return sorted(values, key=len, reverse=True)


def _redact_assignment(match: re.Match[str]) -> str:
    """``train.extra.hub_token=abc`` on a command line: the key says that the value is secret."""
    if not is_secret_name(match["key"]) or match["value"] == MASK:
        return match[0]
    return match["key"] + match["sep"] + MASK
