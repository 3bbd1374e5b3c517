"""Keys in force: who is let in, what a key may ask for and how much, what stands in the log, and TLS."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest
import serving
from audited import kinds
from test_audit_served import BASE, lines_of
from test_leaving import endless, line_to, until

from halter.cli import main
from halter.files.disk import Disk
from halter.serve.audit.keeping import keeping
from halter.serve.audit.log import AuditLog
from halter.serve.trust.keys import KeyRing, ServeKey, digest_of
from halter.serve.trust.rates import KeyRates

openai = pytest.importorskip("openai")
CHAT = "/v1/chat/completions"
TALK = [{"role": "user", "content": "Hi"}]
ASKED: dict[str, Any] = {"model": "tiny", "messages": TALK, "max_tokens": 2, "temperature": 0}


def ring(**rates: int) -> KeyRing:
    law = ServeKey("law-1", "law", digest_of("of-law"), ("lora", "tiny"), **rates)
    return KeyRing((law, ServeKey("all-1", "all", digest_of("of-all"), ("*",))))


def shown(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def client(server: Any, key: str) -> Any:
    return server.client().with_options(api_key=key)


def first_line(server: Any, text: str) -> str:
    """The status of a request that is sent as it stands."""
    with socket.create_connection(("127.0.0.1", server.port), serving.PATIENCE) as line:
        line.sendall(text.replace("\n", "\r\n").encode())
        return line.makefile("rb").readline().decode().strip()


def test_only_who_has_a_key_is_let_in(world: Any) -> None:
    with world.server(admit=ring().admit) as server:
        for path in ("/v1/models", "/v1/models/lora", CHAT, "/tokenizer_info", "/", "/nonsense", "/health/", "//ready"):
            for headers in ({}, shown("nobody"), shown(digest_of("of-law")), {"authorization": "Basic of-law"}):
                status, told, body = server.ask(path, **headers)
                assert status == 401 and told["www-authenticate"] == "Bearer", path
                assert body["error"]["code"] == "invalid_api_key"
        assert server.ask(CHAT, b"[" * 99, content_type="text/plain")[0] == 401  # nothing of it is looked at
        assert server.ask("/health")[0] == server.ask("/ready")[0] == 200
        assert server.ask("/nonsense", **shown("of-law"))[0] == 404
        with pytest.raises(openai.AuthenticationError):
            client(server, "nobody").models.list()
        assert client(server, "of-law").chat.completions.create(**ASKED).usage.completion_tokens == 2


def test_nothing_of_a_request_leads_round_the_key(world: Any) -> None:
    with world.server(admit=ring().admit) as server:
        for target in ("/v1/models?/health", "/v1/models#/health", "http://localhost/health", "/health/../v1/models"):
            assert " 401 " in first_line(server, f"GET {target} HTTP/1.1\nhost: localhost\n\n"), target
        for extra in (
            "host: localhost/health?\n",
            "host: localhost\nx-original-url: /health\nx-forwarded-for: 127.0.0.1\n",
            "host: localhost\nconnection: upgrade\nupgrade: websocket\n",
            "host: localhost\nauthorization: Bearer\n",
            "host: localhost\nauthorization: Bearer nobody\nauthorization: Bearer of-law\n",
            "host: localhost\ncookie: of-law\n",
        ):
            status = first_line(server, f"GET /v1/models HTTP/1.1\n{extra}\n")
            assert status.split()[1] in ("400", "401", "403"), (extra, status)
        for method in ("HEAD", "OPTIONS", "DELETE", "TRACE"):
            assert " 401 " in first_line(server, f"{method} /v1/models HTTP/1.1\nhost: localhost\n\n"), method
        fine = "GET /v1/models HTTP/1.1\nhost: localhost\nauthorization: bearer  of-law\n\n"
        assert " 200 " in first_line(server, fine)


def test_what_a_key_may_not_ask_for_is_as_what_is_not_there(world: Any) -> None:
    with world.server(admit=ring().admit) as server:
        law, everything = client(server, "of-law"), client(server, "of-all")
        assert [model.id for model in law.models.list()] == ["tiny", "lora"]
        assert {"dora", "tiny", "loreft"} < {model.id for model in everything.models.list()}
        told = []
        for name in ("dora", "nobody"):
            with pytest.raises(openai.NotFoundError) as missing:
                law.chat.completions.create(**{**ASKED, "model": name})
            told.append(json.dumps(missing.value.body).replace(name, "NAME"))
            assert server.ask(f"/v1/models/{name}", **shown("of-law"))[0] == 404
            assert server.ask("/tokenize", {"model": name, "prompt": "x"}, **shown("of-law"))[0] == 404
        assert told[0] == told[1]
        assert everything.chat.completions.create(**{**ASKED, "model": "dora"}).model == "dora"
    assert {(one["key"], one["tenant"]) for one in server.records if one["status"] == 200} == {("all-1", "all")}


def test_a_key_gets_its_requests_of_a_minute(world: Any) -> None:
    with world.server(admit=ring(requests_per_minute=2).admit) as server:
        asks = [server.ask(CHAT, ASKED, **shown("of-law")) for _ in range(4)]
        assert [status for status, _, _ in asks] == [200, 200, 429, 429]
        assert 25 <= int(asks[2][1]["retry-after"]) <= 30 and asks[2][2]["error"]["code"] == "rate_limit_exceeded"
        with pytest.raises(openai.RateLimitError):
            client(server, "of-law").chat.completions.create(**ASKED)
        assert server.ask(CHAT, ASKED, **shown("of-all"))[0] == 200
        # What is wrong, and what is refused for lack of room, is nobody's request.
        assert server.ask(CHAT, {**ASKED, "n": 0}, **shown("of-law"))[0] == 400
        law = [one for one in server.records if one["key"] == "law-1"]
    assert [one["status"] for one in law] == [200, 200, 429, 429, 429, 400] and law[2]["outputs"] == []


def level(server: Any) -> float:
    """Tokens that the key of law has left."""
    return server.service.admission.rates._buckets["law-1"][1]._level


def test_a_key_is_charged_for_what_it_used(world: Any) -> None:
    with world.server(admit=ring(tokens_per_minute=10_000).admit) as server:
        charged: list[int] = []
        rates = server.service.admission.rates = KeyRates(lambda: 0.0)  # nothing is filled up meanwhile
        admit = rates.admit
        rates.admit = lambda who, tokens: charged.append(tokens) or admit(who, tokens)
        long = {**endless(world), "max_tokens": 3, "n": 2}
        usage = server.ask(CHAT, {**long, "max_tokens": 1 << 20}, **shown("of-law"))[2]["usage"]
        prompt = usage["prompt_tokens"]
        assert charged == [prompt + 2 * (512 - prompt)]  # no more than the context has
        left = 10_000 - usage["total_tokens"]
        assert level(server) == left
        usage = server.ask(CHAT, long, **shown("of-law"))[2]["usage"]
        assert charged[1] == usage["total_tokens"] == prompt + 2 * 3
        assert level(server) == left - charged[1]
        stream = {**long, "stream": True, "max_tokens": 400, "n": 1}
        line = line_to(server, stream, key="of-law")
        until(lambda: any(place for place in server.service.engine._rows))
        line.close()
        until(lambda: len(server.records) == 3)
        until(lambda: server.service.admission.answers == 0)
        wrote = server.records[2]["completion_tokens"]
        assert wrote < 400 and level(server) == left - charged[1] - prompt - wrote


def test_who_finds_no_room_is_charged_for_nothing(world: Any) -> None:
    with world.server(admit=ring(requests_per_minute=1, tokens_per_minute=1000).admit, queue=1) as server:
        busy = line_to(server, endless(world), key="of-all")
        until(lambda: server.service.admission.answers == 1)
        assert [server.ask(CHAT, ASKED, **shown("of-law"))[0] for _ in range(3)] == [503] * 3
        busy.close()
        until(lambda: server.service.admission.answers == 0)
        assert server.ask(CHAT, ASKED, **shown("of-law"))[0] == 200


class Counted(Disk):
    """A disk that counts its syncs, and may be full."""

    syncs, failed, full = 0, 0, False

    def fsync(self, descriptor: int) -> None:
        self.syncs += 1
        super().fsync(descriptor)

    def write(self, descriptor: int, data: memoryview) -> int:
        self.failed += self.full
        if self.full:
            raise OSError(28, "No space left on device")
        return super().write(descriptor, data)


def test_who_has_no_key_makes_nobody_wait_for_the_disk(world: Any, tmp_path: Path) -> None:
    folder, disk = tmp_path / "audit", Counted()
    with AuditLog(folder, disk=disk) as log, world.server(keep=keeping(log, BASE), admit=ring().admit) as server:
        assert server.ask(CHAT, ASKED, **shown("of-law"))[0] == 200
        before, disk.full = disk.syncs, True
        for _ in range(40):
            assert server.ask(CHAT, ASKED, **shown("nobody"))[0] == 401
        assert server.ask("/v1/models", host="evil.example", x_request_id="evil")[0] == 403
        until(lambda: disk.failed)
        disk.full = False
        server.ask("/v1/models", **shown("nobody"))
        until(lambda: len(lines_of(folder)) == 3)
        assert disk.syncs - before <= 4
        assert server.ask("/v1/models", x_request_id="last")[0] == 401  # told when the server ends, at the latest
    first, *away = lines_of(folder)
    assert (first["key"], first["tenant"], first["times"]) == ("law-1", "law", 1)
    assert [line["finish"] for line in away].count("refused:invalid_api_key") == 2
    assert sum(line["times"] for line in away) == 43 and all(line["tenant"] is line["key"] is None for line in away)
    assert [line["times"] for line in away if line["request"] == "evil"] == [1] and away[-1]["request"] == "last"
    assert kinds(folder) == [] and "nobody" not in json.dumps(away)


@pytest.fixture
def keys_file(tmp_path: Path, capsys: Any) -> Path:
    file = tmp_path / "keys.json"
    assert main.run(["keys", "new", "acme", "--file", str(file), "--adapters", "playground,gone"]) == 0
    (tmp_path / "key").write_text(capsys.readouterr().out.strip())
    return file


def test_without_a_file_of_keys_that_can_be_used_nothing_starts(tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "keys.json"
    for make, id in (
        (lambda: None, "file-missing"),
        (path.touch, "file-not-json"),
        (lambda: path.write_text('{"keys": []}'), "keys-file"),
        (lambda: (path.unlink(), path.mkdir()), "file-missing"),
    ):
        make()
        assert main.run(["serve", "playground", "--keys", str(path)]) == 2
        err = capsys.readouterr().err
        assert f"[{id}]" in err and "serving" not in err, err


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    words = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    words += ["-keyout", str(key), "-out", str(cert), "-days", "2", "-subj", "/CN=localhost"]
    try:
        subprocess.run([*words, "-addext", "subjectAltName=DNS:localhost"], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("no openssl")
    return cert, key


@pytest.mark.parametrize(
    ("words", "id", "told"),
    [
        ("--host 0.0.0.0", "serve-exposed", "--keys FILE"),
        ("--host 0.0.0.0 --behind-proxy", "serve-exposed", "--keys FILE"),
        ("--host 0.0.0.0 --tls-cert {cert} --tls-key {key}", "serve-exposed", "--keys FILE"),
        ("--host 0.0.0.0 --keys {keys}", "serve-exposed", "--behind-proxy"),
        ("--tls-cert {cert}", "serve-options", "--tls-cert without --tls-key"),
        ("--tls-key {key}", "serve-options", "--tls-key without --tls-cert"),
        ("--tls-cert {cert} --tls-key {cert}", "tls-unusable", "--tls-key"),
        ("--tls-cert {cert} --tls-key {keys}.none", "tls-unusable", "No such file"),
        ("--host 0.0.0.0 --keys {keys} --tls-cert {cert} --tls-key {key}", "", ""),
        ("--host 0.0.0.0 --keys {keys} --behind-proxy", "", ""),
        ("--keys {keys}", "", ""),
    ],
)
def test_beyond_this_machine_keys_and_tls_are_demanded(
    words: str, id: str, told: str, keys_file: Path, certificate: Any, monkeypatch: Any, capsys: Any
) -> None:
    from halter.serve import running

    made: list[Any] = []

    async def served(make: Any, *_: Any) -> None:
        service = make()
        made.append(service.admit)
        await service.close()

    monkeypatch.setattr(running, "serve", served)
    cert, key = certificate
    code = main.run(["serve", "playground", *words.format(keys=keys_file, cert=cert, key=key).split()])
    err = capsys.readouterr().err
    if id:
        assert code == 2 and f"[{id}]" in err and told in err and not made, err
        return
    (admit,) = made
    assert code == 0 and admit(None) is admit("nobody") is None
    who = admit((keys_file.parent / "key").read_text())
    assert (who.name, who.key) == ("acme", "acme-1") and who.may("playground") and not who.may("law")
    assert "keys name what is not served: gone" in err


def test_tls(world: Any, certificate: tuple[Path, Path]) -> None:
    cert, key = certificate
    with world.server(admit=ring().admit, tls_cert=cert, tls_key=key) as server:
        trusting = ssl.create_default_context(cafile=str(cert))
        with openai.DefaultHttpxClient(verify=trusting, trust_env=False) as line:
            address = f"https://localhost:{server.port}/v1"
            asking = openai.OpenAI(base_url=address, api_key="of-law", max_retries=0, http_client=line)
            assert asking.chat.completions.create(**ASKED).usage.completion_tokens == 2
            streamed = asking.chat.completions.create(**ASKED, stream=True)
            assert [chunk.object for chunk in streamed][-1] == "chat.completion.chunk"
            assert line.get(f"{address}/models").status_code == 401
        assert not first_line(server, "GET /health HTTP/1.1\nhost: localhost\n\n").startswith("HTTP/1.1 200")
