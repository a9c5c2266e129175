"""A remote run, up to the wire and beyond: what is sent is executed by a process that has never heard of this project.

Only the connection is not real: the HTTP request is taken from under httpx, whole, and handed to `remote_server.py`.
"""

from __future__ import annotations

import email
import io
import json
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import huggingface_hub.constants
import pytest
import torch
import websocket
from nnsight import CONFIG, NNsight, TransformersModel
from nnsight.modeling import huggingface
from nnsight.schema.response import ResponseModel, Status

import interp
from interp.errors import (
    BadInput,
    ModelNotLoadable,
    RemoteUnavailable,
    SiteDidNotFire,
    SiteUnavailable,
    UnknownSite,
    UnsupportedArchitecture,
)
from interp.tracing.interventions import KINDS
from interp.tracing.sites import SITES
from tests.families import FAMILIES, SDPA, build, prompts, ragged, word_tokenizer
from tests.tracing.backends.test_nnsight import assert_same, edits_of
from tests.tracing.test_reads import close

Remote = tuple[interp.Model, interp.Model]


class Service:
    """The wire: what was sent, and the process that answers."""

    def __init__(self) -> None:
        self.folders: dict[str, str] = {}
        self.requests: list[tuple[httpx.Request, dict[str, Any], bytes]] = []
        self.answers: list[dict[str, Any]] = []
        program = Path(__file__).with_name("remote_server.py")
        self.process = subprocess.Popen([sys.executable, program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def handle(self, request: httpx.Request) -> httpx.Response:
        """In place of a network: the request as httpx would have put it on the wire."""
        if request.url.path == "/status":
            return httpx.Response(200, json={"deployments": {}}, request=request)
        assert request.url.path == "/request"
        content_type = f"Content-Type: {request.headers['content-type']}\r\n\r\n".encode()
        fields = {
            part.get_param("name", header="content-disposition"): part.get_payload(decode=True)
            for part in email.message_from_bytes(content_type + request.read()).get_payload()
        }
        routing = json.loads(fields["data"])
        self.requests.append((request, routing, fields["blob"]))
        self.answers.append(self._execute({"routing": routing, "blob": fields["blob"], "folders": self.folders}))
        return httpx.Response(200, json={"id": "job", "status": "RECEIVED"}, request=request)

    def _execute(self, message: dict[str, Any]) -> dict[str, Any]:
        pipes = self.process
        assert pipes.stdin is not None
        assert pipes.stdout is not None
        buffer = io.BytesIO()
        torch.save(message, buffer)
        pipes.stdin.write(struct.pack("!Q", buffer.tell()) + buffer.getvalue())
        pipes.stdin.flush()
        size = struct.unpack("!Q", pipes.stdout.read(8))[0]
        return torch.load(io.BytesIO(pipes.stdout.read(size)), weights_only=True)

    def connect(self, *_args: object, **_options: object) -> Connection:
        return Connection(self)


class Connection:
    """The subscription on which the service reports: a session, then the end of the job."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.messages: Iterator[str | bytes] = self._messages()

    def _messages(self) -> Iterator[str | bytes]:
        yield json.dumps({"session_id": "session"})
        yield ResponseModel(id="job", status=Status.RUNNING).model_dump_json()
        answer = self.service.answers[-1]
        if "error" in answer:
            yield ResponseModel(id="job", status=Status.ERROR, description=answer["error"]).model_dump_json()
        else:
            yield ResponseModel(id="job", status=Status.COMPLETED, data=answer["result"]).pickle()

    def recv(self) -> str | bytes:
        return next(self.messages)

    def settimeout(self, _seconds: float) -> None: ...
    def close(self) -> None: ...


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    service = Service()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(httpx.HTTPTransport, "handle_request", lambda _transport, request: service.handle(request))
        patch.setattr(websocket, "create_connection", service.connect)
        patch.setattr(CONFIG.API, "APIKEY", "the key")
        patch.setattr(CONFIG.APP, "REMOTE_LOGGING", False)
        yield service
    service.process.stdin.close()  # type: ignore[union-attr]
    assert service.process.wait(30) == 0


@pytest.fixture(scope="module")
def remote_of(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Remote]:
    """`remote_of("llama")`: a model that only the service has, and the same model here."""

    @cache
    def get(family: str) -> Remote:
        hf = build(family, "sdpa" if family in SDPA else "eager")
        folder = str(tmp_path_factory.mktemp(family))
        hf.save_pretrained(folder)
        service.folders[f"someone/tiny-{family}"] = folder
        huggingface._ID_CACHE[folder] = f"someone/tiny-{family}"
        tokenizer = word_tokenizer()
        tokenizer.add_special_tokens({"mask_token": "<pad>"})
        task = "text-generation" if hf.can_generate() else "fill-mask"
        named = TransformersModel(folder, task=task, tokenizer=tokenizer)
        return interp.wrap(named, remote=True), interp.wrap(hf, tokenizer)

    return get


@pytest.fixture
def llama(remote_of: Callable[[str], Remote]) -> Remote:
    return remote_of("llama")


def names(model: interp.Model) -> list[str]:
    return [name for name in SITES if name not in model.refusals]


@pytest.mark.filterwarnings("ignore:Module .* has a submodule named 'output'")
@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "bitnet"])
def test_every_site_that_can_be_read_there_equals_the_one_here(family: str, remote_of: Callable[[str], Remote]) -> None:
    there, here = remote_of(family)
    ids = prompts()
    got, wanted = (model.run(ids, read=names(there), logits="all") for model in (there, here))
    assert len(got) > 20
    assert_same(got, wanted)
    close(got.logits, wanted.logits)
    edits = [interp.scale("z.0.1", -3.0), interp.zero("mlp_out.1"), interp.scale("q.1", 0.3)]
    edited = there.run(ids, edits=edits).logits
    close(edited, here.run(ids, edits=edits).logits)
    assert (edited - wanted.logits[:, -1]).abs().max() > 1e-2


def test_no_weight_is_loaded_here_and_the_shape_comes_from_the_configuration(llama: Remote) -> None:
    there, here = llama
    there.run(prompts(), read="resid_post.1")
    assert not there.backend_object.dispatched
    assert all(parameter.is_meta for parameter in there.hf.parameters())
    assert there.spec == here.spec.__class__(**{**here.spec.as_dict(), "name": there.spec.name})
    assert there.remote
    assert not here.remote
    assert "nnsight (remote) backend, sdpa attention" in str(there.describe())
    assert interp.wrap(there, tokenizer=word_tokenizer()).remote
    assert not there.backend_object.dispatched


def test_a_request_names_the_model_and_carries_the_key_source_and_data_only(llama: Remote, service: Service) -> None:
    there, _ = llama
    donor = torch.zeros(50, 12, 64)[:2]
    there.run(prompts(), read="resid_post.1", edits=interp.patch("resid_mid.0", donor))
    request, routing, blob = service.requests[-1]
    assert request.headers["ndif-api-key"] == "the key"
    assert request.url == f"{CONFIG.API.HOST}/request"
    name = json.loads(routing["model_key"].partition(":")[2])
    assert (name["repo_id"], name["task"]) == ("someone/tiny-llama", "text-generation")
    assert routing["env"] == {"attn_implementation": "sdpa"}
    assert routing["session_id"] == "session"
    assert len(blob) < 20_000


@pytest.mark.parametrize("site", ["k.0.1", "resid_mid.0", "mlp_post.1"])
def test_every_kind_of_edit_acts_there_as_here(llama: Remote, site: str) -> None:
    there, here = llama
    ids = prompts()
    unedited = here.run(ids, logits="all").logits
    donor = here.run(prompts(seed=9), read=site)
    edits = edits_of(site, tuple(donor[site].shape[2:]), donor)
    assert {edit.kind for edit in edits} == set(KINDS)
    for edit in edits:
        logits = there.run(ids, edits=edit, logits="all").logits
        close(logits, here.run(ids, edits=edit, logits="all").logits, edit)
        assert (logits - unedited).abs().max() > 1e-2, f"{edit} had no effect"


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", ["gpt2", "opt", "mistral"])
def test_padded_prompts_keep_positions_and_rows(
    family: str, side: Any, remote_of: Callable[[str], Remote], service: Service
) -> None:
    there, here = remote_of(family)
    edits = [interp.scale("z.0.1", -3.0).at(positions=-1, rows=(0, 2)), interp.zero("mlp_out.0").at(positions=[1])]
    edits += [interp.scale("logits", 2.0).at(positions=-2)]
    for positions in (None, (0, -2), slice(-3, None)):
        ask: dict[str, Any] = {
            "read": ["k.1", "resid_pre.1", "mlp_post.1", "logits"],
            "edits": edits,
            "positions": positions,
            "padding_side": side,
        }
        got, wanted = (model.run(ragged(), logits="last", **ask) for model in (there, here))
        assert_same(got, wanted)
        close(got.logits, wanted.logits)
        assert torch.equal(got.positions, wanted.positions)
    close(there.run(ragged(), logits=(0, -1)).logits, here.run(ragged(), logits=(0, -1)).logits)


def test_a_run_stops_there_and_sends_back_only_what_was_asked_for(llama: Remote, service: Service) -> None:
    there, here = llama
    there.run(prompts(), read="resid_pre.0")
    few, small = service.answers[-1]["computed"], len(service.answers[-1]["result"])
    there.run(prompts(), read="resid_post", logits="all")
    assert few < service.answers[-1]["computed"] / 4
    assert small < len(service.answers[-1]["result"]) / 4
    trace = there.run(prompts(), read="resid_post", positions=-1)
    assert trace["resid_post.1"].shape == (2, 1, 64)
    assert len(service.answers[-1]["result"]) < small / 2
    assert trace.stopped_after == here.run(prompts(), read="resid_post").stopped_after


def refuse_everything(there: interp.Model) -> dict[str, tuple[Callable[[], Any], type[Exception], str]]:
    ids = prompts()
    fold = interp.RowFold("mass", lambda rows, _positions, _layer: rows.pattern.sum(2))
    return {
        "queries at the kernel": (lambda: there.run(ids, read="q_rot.0"), SiteUnavailable, "the attention kernel runs"),
        "patterns": (lambda: there.run(ids, read="pattern"), SiteUnavailable, "the attention kernel runs"),
        "statistics": (lambda: there.run(ids, read="attention_stats"), SiteUnavailable, "the attention kernel runs"),
        "forced rows": (lambda: there.run(ids, edits=interp.attend("pattern.0", 1)), SiteUnavailable, "kernel runs"),
        "folds": (lambda: there.run(ids, read=fold), SiteUnavailable, "mass is not available: the attention"),
        "head outputs": (lambda: there.run(ids, read="head_out.0"), SiteUnavailable, "W_O is on the remote server"),
        "gradients": (lambda: there.run(ids, grad=True), BadInput, "gradients need the model here"),
        "generation": (lambda: there.generate(ids), BadInput, "no cached generation; run"),
        "a prefix": (lambda: there.prefill(ids[:1]), BadInput, "there is no prefix"),
        "its own check": (lambda: there.doctor(), BadInput, "cannot be checked against itself here"),
        "an unknown site": (lambda: there.run(ids, read="z.7"), UnknownSite, "layers 0 to 1"),
        "a fingerprint": (lambda: there.fingerprint, BadInput, "weights"),
    }


@pytest.mark.parametrize("what", refuse_everything(None))  # type: ignore[arg-type]
def test_what_the_service_cannot_do_is_refused_before_anything_is_sent(
    llama: Remote, service: Service, what: str
) -> None:
    call, error, message = refuse_everything(llama[0])[what]
    before = len(service.requests)
    with pytest.raises(error, match=message):
        call()
    assert len(service.requests) == before


def test_a_family_outside_the_table_is_refused(remote_of: Callable[[str], Remote]) -> None:
    with pytest.raises(
        UnsupportedArchitecture, match="'bitnet' is not in the table, and its structure cannot be proven"
    ):
        remote_of("bitnet")


def test_running_on_the_public_service_needs_a_key(llama: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    named = llama[0].backend_object
    monkeypatch.setattr(CONFIG.API, "APIKEY", None)
    for call in (
        lambda: interp.wrap(named, remote=True),
        lambda: interp.load("someone/tiny-llama", backend="nnsight", remote=True),
    ):
        with pytest.raises(RemoteUnavailable, match="needs a key: set NDIF_API_KEY before nnsight is imported, or"):
            call()
    monkeypatch.setattr(CONFIG.API, "HOST", "http://a-service-of-our-own")
    assert interp.wrap(named, remote=True).remote


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> str:
    """An address where nothing listens, reached for real."""
    monkeypatch.setattr(httpx.HTTPTransport, "handle_request", REAL_TRANSPORT)
    monkeypatch.setattr(websocket, "create_connection", REAL_CONNECTION)
    monkeypatch.setattr(CONFIG.API, "HOST", "http://127.0.0.1:9")
    return "http://127.0.0.1:9"


REAL_TRANSPORT, REAL_CONNECTION = httpx.HTTPTransport.handle_request, websocket.create_connection


def test_a_service_that_does_not_answer_says_so_at_once(llama: Remote, nobody: str) -> None:
    there, _ = llama
    for call in (
        lambda: interp.wrap(there.backend_object, remote=True),
        lambda: interp.load("someone/tiny-llama", backend="nnsight", remote=True),
        lambda: there.run(prompts()),
    ):
        with pytest.raises(RemoteUnavailable, match=f"the remote service at {nobody} cannot be reached: ."):
            call()


def test_a_service_that_refuses_or_fails_a_job_is_quoted(
    llama: Remote, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, here = llama

    def refuse(request: httpx.Request) -> httpx.Response:
        return httpx.Response(503, json={"detail": "no room for someone/tiny-llama"}, request=request)

    def fail(request: httpx.Request) -> httpx.Response:
        service.answers.append({"error": "OutOfMemoryError: the GPU is full"})
        return httpx.Response(200, json={"id": "job", "status": "RECEIVED"}, request=request)

    def go_another_way(request: httpx.Request) -> httpx.Response:
        service.answers.append({"error": "OutOfOrderError: 'model.x.output' was requested"})
        return httpx.Response(200, json={"id": "job", "status": "RECEIVED"}, request=request)

    answers: dict[Callable[[httpx.Request], httpx.Response], tuple[type[Exception], str]] = {
        refuse: (RemoteUnavailable, "did not run .*no room for someone/tiny-llama"),
        fail: (RemoteUnavailable, "did not run .*OutOfMemoryError: the GPU is full"),
        go_another_way: (SiteDidNotFire, "went another way than its family does: .*model.x.output"),
    }
    for handle, (error, message) in answers.items():
        with monkeypatch.context() as patch:
            patch.setattr(httpx.HTTPTransport, "handle_request", lambda _, request, handle=handle: handle(request))
            with pytest.raises(error, match=message):
                there.run(prompts())
    with monkeypatch.context() as patch:
        patch.setattr(Connection, "recv", lost)
        with pytest.raises(RemoteUnavailable, match="cannot be reached: connection is already closed"):
            there.run(prompts())
    close(there.run(prompts()).logits, here.run(prompts()).logits)


def lost(_: Connection) -> str:
    raise websocket.WebSocketConnectionClosedException("connection is already closed.")


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: interp.wrap(NNsight(build("llama")), remote=True), BadInput, "a NNsight has no name that a remote"),
        (lambda: interp.wrap(build("llama"), remote=True), BadInput, "the hooks backend has no remote service"),
        (lambda: interp.wrap(build("llama"), backend="nnsight", remote=True), BadInput, "LlamaForCausalLM has no name"),
        (lambda: interp.load("someone/tiny", remote=True), BadInput, "the hooks backend has no remote service"),
        (
            lambda: interp.load("someone/tiny", backend="nnsight", remote=True, device="cpu"),
            BadInput,
            "the remote service's own choice",
        ),
        (lambda: interp.load(".", backend="nnsight", remote=True), ModelNotLoadable, r"\. is no hub id"),
        (
            lambda: interp.load("someone/nothing", backend="nnsight", remote=True, tokenizer=word_tokenizer()),
            ModelNotLoadable,
            "the configuration of someone/nothing cannot be had",
        ),
    ],
)
def test_what_the_service_cannot_know_is_refused(
    service: Service, make: Callable[[], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make()


def test_a_model_that_no_hub_has_is_refused(service: Service, tmp_path: Path) -> None:
    build("llama").save_pretrained(tmp_path)
    named = TransformersModel(str(tmp_path), task="text-generation", tokenizer=word_tokenizer())
    with pytest.raises(RemoteUnavailable, match="is not a model that the service could find"):
        interp.wrap(named, remote=True)


def test_a_hub_id_is_loaded_without_its_weights(
    llama: Remote, service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub's cache holds the configuration and the tokenizer, and no weights."""
    commit = "0" * 40
    snapshot = tmp_path / "models--someone--tiny-llama" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (tmp_path / "models--someone--tiny-llama" / "refs").mkdir()
    (tmp_path / "models--someone--tiny-llama" / "refs" / "main").write_text(commit)
    build("llama").config.save_pretrained(snapshot)
    word_tokenizer().save_pretrained(snapshot)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setitem(huggingface._ID_CACHE, "someone/tiny-llama", "someone/tiny-llama")
    model = interp.load("someone/tiny-llama", backend="nnsight", remote=True, attention="eager")
    assert model.spec.name == "someone/tiny-llama"
    assert all(parameter.is_meta for parameter in model.hf.parameters())
    got = model.run("w3 w4 w5", read="resid_mid.1", logits="last")
    wanted = llama[1].run([[3, 4, 5]], read="resid_mid.1", logits="last")
    assert_same(got, wanted)
    close(got.logits, wanted.logits)
