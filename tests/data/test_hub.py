"""The Hub, played by a small server here: answers, refusals, silence."""

import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from sft_experiments.data.sources import pin_revisions
from sft_experiments.errors import DataError, ModelError
from sft_experiments.models.hub import hub_answers, hub_commit
from sft_experiments.schema import DataSource

SHA = "0123456789abcdef0123456789abcdef01234567"
ERRORS = {"gated/model": "GatedRepo", "no/model": "RepoNotFound", "old/model": "RevisionNotFound"}


class FakeHub(BaseHTTPRequestHandler):
    def do_GET(self):
        name = "/".join(self.path.split("?")[0].split("/")[3:5])
        if error := ERRORS.get(name):
            self.send_response(403 if error == "GatedRepo" else 404)
            self.send_header("X-Error-Code", error)
            self.send_header("X-Error-Message", error)
            self.end_headers()
            return
        body = f'{{"id": "{name}", "sha": "{SHA}", "siblings": []}}'.encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def fake_hub(monkeypatch):
    server = HTTPServer(("127.0.0.1", 0), FakeHub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield
    server.shutdown()


def test_a_branch_becomes_the_commit_that_it_is_now(fake_hub):
    assert hub_commit("model", "some/model", None, ModelError) == SHA


@pytest.mark.parametrize(
    ("name", "said"),
    [("gated/model", "is gated: accept"), ("no/model", "is no model on the Hub"), ("old/model", "'v9'")],
)
def test_refusals_of_the_hub_are_one_line_that_says_what_to_do(fake_hub, name, said):
    with pytest.raises(ModelError, match=said):
        hub_commit("model", name, "v9", ModelError)


def test_data_sets_are_pinned_also_inside_a_mixture(fake_hub, settings):
    single = pin_revisions(settings(source="hub", hub_id="some/data"))
    assert single.hub_revision == SHA
    mixture = pin_revisions(settings(source="mixture", mixture={"a": {"source": "hub", "hub_id": "some/data"}}))
    assert mixture.mixture["a"]["hub_revision"] == SHA


def test_offline_mode_asks_nobody(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(socket, "create_connection", lambda *a, **k: pytest.fail("asked"))
    assert not hub_answers() and hub_commit("model", "a/b", None, ModelError) is None


def test_a_hub_that_never_answers_costs_two_seconds(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(
        socket, "create_connection", lambda *a, **k: threading.Event().wait()
    )  # a name lookup that hangs
    started = time.monotonic()
    assert not hub_answers()
    assert time.monotonic() - started < 2.5


def test_a_data_set_without_network_and_local_copy_is_a_clear_error(monkeypatch, prepare):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        DataError, match=r"dataset\.hub_id=nobody/nothing.*cannot be reached and there is no local copy"
    ):
        prepare(source=DataSource.hub, hub_id="nobody/nothing")
