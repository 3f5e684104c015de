"""Online or offline, decided before W&B starts: its own attempt to reach a dead host takes minutes and then raises."""

import base64
import netrc
import os
import threading
import urllib.request
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from sft_experiments.schema import WandbMode

PROBE_SECONDS = 2.0
DEFAULT_HOST = "https://api.wandb.ai"
Mode = Literal["online", "offline", "disabled"]
_FROM_ENVIRONMENT: dict[str, Mode] = {
    "online": "online",
    "offline": "offline",
    "dryrun": "offline",
    "disabled": "disabled",
}


def choose_mode(wanted: WandbMode) -> tuple[Mode, str]:
    """The mode and the reason. ``auto``: online with a key that the host accepts in time; ``WANDB_MODE`` wins."""
    if wanted is not WandbMode.auto:
        return _FROM_ENVIRONMENT[wanted.value], f"logger.wandb.mode={wanted.value}"
    if os.environ.get("WANDB_DISABLED", "").lower() in {"true", "1", "yes"}:  # transformers' own, still in many setups
        return "disabled", "WANDB_DISABLED is set"
    if mode := _FROM_ENVIRONMENT.get(os.environ.get("WANDB_MODE", "")):
        return mode, f"WANDB_MODE={mode}"
    host = os.environ.get("WANDB_BASE_URL", DEFAULT_HOST).rstrip("/")
    key = os.environ.get("WANDB_API_KEY") or _key_from_netrc(host)
    if not key:
        return "offline", "no API key: run `wandb login` or set WANDB_API_KEY"
    refusal = _ask(host, key)
    return ("offline", refusal) if refusal else ("online", f"{host} answered")


def _key_from_netrc(host: str) -> str | None:
    """The key that ``wandb login`` stored."""
    candidates = [os.environ.get("NETRC"), "~/.netrc", "~/_netrc"]
    for path in (Path(candidate).expanduser() for candidate in candidates if candidate):
        try:
            entry = netrc.netrc(path).authenticators(urlsplit(host).hostname or "")
        except (OSError, netrc.NetrcParseError):
            continue
        if entry and entry[2]:
            return entry[2]
    return None


def _ask(host: str, key: str) -> str:
    """Why the host cannot be used, or an empty string. Takes at most ``PROBE_SECONDS``, name resolution included."""
    answer: list[str] = []
    thread = threading.Thread(target=lambda: answer.append(_query_viewer(host, key)), daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)
    return answer[0] if answer else f"{host} did not answer within {PROBE_SECONDS:g} s"


def _query_viewer(host: str, key: str) -> str:
    credentials = base64.b64encode(f"api:{key}".encode()).decode()
    headers = {"Authorization": f"Basic {credentials}", "Content-Type": "application/json"}
    query = b'{"query": "query { viewer { id } }"}'
    request = urllib.request.Request(f"{host}/graphql", data=query, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=PROBE_SECONDS) as response:
            return "" if b'"viewer"' in response.read(4096) else f"{host} is not a W&B server"
    except urllib.error.HTTPError as error:
        return f"{host} refused the API key (HTTP {error.code})"
    except (OSError, ValueError) as error:
        return f"{host} cannot be reached: {getattr(error, 'reason', error)}"
