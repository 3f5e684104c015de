"""Online only with a key and a host that takes it, decided in seconds and without W&B."""

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from sft_experiments.monitor.trackers.wandb_mode import choose_mode
from sft_experiments.schema import WandbMode


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[type]:
    """A W&B server that knows one key. ``answer`` is what it says then."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)

    class Handler(BaseHTTPRequestHandler):
        answer = b'{"data": {"viewer": {"id": "someone"}}}'

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            known = self.headers["Authorization"] == "Basic YXBpOnJpZ2h0"  # api:right
            self.send_response(200 if known else 401)
            self.end_headers()
            self.wfile.write(self.answer if known else b"")

        def log_message(self, *arguments: Any) -> None:
            pass

    running = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{running.server_port}")
    yield Handler
    running.shutdown()
    running.server_close()


def test_no_key_means_offline() -> None:
    assert choose_mode(WandbMode.auto) == ("offline", "no API key: run `wandb login` or set WANDB_API_KEY")


def test_a_key_that_the_host_knows_means_online(server: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "right")
    assert choose_mode(WandbMode.auto)[0] == "online"


def test_a_key_that_the_host_refuses_means_offline(server: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "wrong")
    mode, reason = choose_mode(WandbMode.auto)
    assert mode == "offline"
    assert reason.endswith("refused the API key (HTTP 401)")
    assert "wrong" not in reason


def test_a_host_that_is_something_else_means_offline(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    server.answer = b"<html>It works!</html>"
    monkeypatch.setenv("WANDB_API_KEY", "right")
    assert choose_mode(WandbMode.auto)[0] == "offline"


def test_the_key_of_an_earlier_login_is_used(server: type, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1\n  login user\n  password right\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    assert choose_mode(WandbMode.auto)[0] == "online"


def test_the_decision_takes_seconds_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(5)
        monkeypatch.setenv("WANDB_API_KEY", "right")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        started = time.monotonic()
        assert choose_mode(WandbMode.auto)[0] == "offline"
        assert time.monotonic() - started < 5


def test_wishes_win(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_mode(WandbMode.online)[0] == "online"
    assert choose_mode(WandbMode.offline)[0] == "offline"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert choose_mode(WandbMode.auto) == ("disabled", "WANDB_MODE=disabled")
