"""What a receiver or the environment advises us to call instead is not called: redirects, proxies, and the like."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from app.config import Settings
from app.outcome import FailureClass, Outcome
from app.transport import Transport
from tests import receiver as play
from tests.faults.canaries import Canaries
from tests.faults.certificates import trust
from tests.faults.nameserver import NameServer
from tests.receiver import Receiver

HEADERS = {"content-type": "application/json", "accept-encoding": "identity"}
BODY = b"{}"


def loopback(**changes: object) -> Settings:
    values: dict[str, object] = {"deadline_s": 2.0, "connect_timeout_s": 1.0, "metrics_port": 0}
    return Settings(_env_file=None, **(values | {"allow_networks": ("127.0.0.0/8",)} | changes))  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def few_authorities(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", trust(tmp_path))


@pytest.fixture
async def canaries() -> AsyncIterator[Canaries]:
    async with Canaries() as listening:
        yield listening


# --- receivers -------------------------------------------------------------------------------------------------------

TARGETS = {
    "same-machine": "http://127.0.0.1:{port}/",
    "other-scheme": "https://127.0.0.1:{port}/",
    "no-scheme": "//127.0.0.1:{port}/",
    "ipv6": "http://[::1]:{port}/",
    "decimal": "http://2130706433:{port}/",
    "metadata": "http://169.254.169.254/latest/meta-data/",
    "self": "/hook",
    "user": "http://a:b@127.0.0.1:{port}/",
    "file": "file:///etc/passwd",
    "split": "http://127.0.0.1:{port}/\\r\\nhost: 127.0.0.1:{port}",
    "empty": "",
}


@pytest.mark.parametrize("code", range(300, 309))
@pytest.mark.parametrize("target", TARGETS)
async def test_redirect_is_never_followed(canaries: Canaries, code: int, target: str) -> None:
    location = TARGETS[target].format(port=canaries.ports[0])
    async with Receiver(play.redirect(location, code)) as receiver, Transport(loopback()) as transport:
        result = await transport.post(receiver.url, HEADERS, BODY)
        assert (receiver.connections, len(receiver.requests)) == (1, 1)
    assert (result.outcome, result.failure_class) == (Outcome.DEFINITE, FailureClass.HTTP_STATUS)
    assert result.error == f"HTTP {code}: redirects are not followed"
    assert await canaries.connections() == 0


ADVICE = {
    "created": (201, {"location": "http://127.0.0.1:{port}/"}),
    "accepted": (202, {"location": "http://127.0.0.1:{port}/", "retry-after": "0"}),
    "refresh": (200, {"refresh": "0; url=http://127.0.0.1:{port}/"}),
    "alt-svc": (200, {"alt-svc": 'http/1.1="127.0.0.1:{port}"; ma=86400; persist=1, h2=":{port}"; ma=86400'}),
    "alt-used": (200, {"alt-used": "127.0.0.1:{port}", "content-location": "http://127.0.0.1:{port}/"}),
    "hsts": (200, {"strict-transport-security": "max-age=86400; includeSubDomains; preload"}),
    "link": (200, {"link": "<http://127.0.0.1:{port}/>; rel=preconnect, <http://127.0.0.1:{port}/>; rel=preload"}),
    "report": (
        400,
        {
            "nel": '{{"report_to":"a","max_age":9}}',
            "report-to": '{{"endpoints":[{{"url":"http://127.0.0.1:{port}/"}}]}}',
        },
    ),
    "accelerate": (200, {"x-accel-redirect": "http://127.0.0.1:{port}/", "x-sendfile": "/etc/passwd"}),
    "authenticate": (401, {"www-authenticate": 'Bearer realm="http://127.0.0.1:{port}/", error="invalid_token"'}),
    "basic": (401, {"www-authenticate": 'Basic realm="a"'}),
    "negotiate": (401, {"www-authenticate": "Negotiate"}),
    "proxy": (407, {"proxy-authenticate": 'Basic realm="a"', "location": "http://127.0.0.1:{port}/"}),
    "misdirected": (421, {"location": "http://127.0.0.1:{port}/"}),
    "captive": (511, {"location": "http://127.0.0.1:{port}/"}),
    "busy": (503, {"location": "http://127.0.0.1:{port}/", "retry-after": "0"}),
}


@pytest.mark.parametrize("advice", ADVICE)
async def test_advice_in_an_answer_is_not_taken(canaries: Canaries, advice: str) -> None:
    code, headers = ADVICE[advice]
    filled = {name: value.format(port=canaries.ports[0]) for name, value in headers.items()}
    async with Receiver(play.status(code, filled)) as receiver, Transport(loopback()) as transport:
        for n in range(1, 3):  # the second attempt must not remember it either
            result = await transport.post(receiver.url, HEADERS, BODY)
            assert result.http_status == code
            assert len(receiver.requests) == n
        sent = {name for request in receiver.requests for name in request.headers}
        assert sent == HEADERS.keys() | {"host", "content-length"}
    assert await canaries.connections() == 0


async def test_early_hints_are_not_fetched(canaries: Canaries) -> None:
    hints = f"HTTP/1.1 103 Early Hints\r\nlink: <http://127.0.0.1:{canaries.ports[0]}/>; rel=preload\r\n\r\n".encode()
    async with Receiver(play.raw(hints + play.response(200))) as receiver, Transport(loopback()) as transport:
        assert (await transport.post(receiver.url, HEADERS, BODY)).outcome is Outcome.DELIVERED
    assert await canaries.connections() == 0


# --- the environment -------------------------------------------------------------------------------------------------

VARIABLES = [
    *("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "WS_PROXY", "socks_proxy"),
    *("SOCKS_PROXY", "FTP_PROXY", "CGI_HTTP_PROXY", "AIOHTTP_PROXY", "PROXY"),
]


@pytest.mark.parametrize("variable", VARIABLES)
@pytest.mark.parametrize("form", ["http://127.0.0.1:{port}", "socks5h://127.0.0.1:{port}", "127.0.0.1:{port}"])
async def test_proxy_of_the_environment_is_never_used(
    monkeypatch: pytest.MonkeyPatch, canaries: Canaries, variable: str, form: str
) -> None:
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv(variable, form.format(port=canaries.ports[0]))
    with NameServer({"good.example": [["127.0.0.66"]], "bad.example": [["127.0.0.1"]]}) as names:
        async with (
            Canaries(1) as server,
            Transport(loopback(allow_networks=("127.0.0.66/32",)), getaddrinfo=names.getaddrinfo) as transport,
        ):
            for scheme in ("http", "https"):
                await transport.post(f"{scheme}://good.example:{server.ports[0]}/", HEADERS, BODY)
                refused = await transport.post(f"{scheme}://bad.example:{server.ports[0]}/", HEADERS, BODY)
                assert (refused.outcome, refused.failure_class) == (Outcome.DEFINITE, FailureClass.BLOCKED_ADDRESS)
            assert await server.connections() == 2
    assert await canaries.connections() == 0


@pytest.mark.parametrize("exempt", ["*", "127.0.0.1", "bad.example", ".example", "127.0.0.0/8", "::1", ""])
async def test_no_proxy_exempts_nothing_from_the_guard(
    monkeypatch: pytest.MonkeyPatch, canaries: Canaries, exempt: str
) -> None:
    monkeypatch.setenv("NO_PROXY", exempt)
    monkeypatch.setenv("no_proxy", exempt)
    with NameServer({"bad.example": [["127.0.0.1"]]}) as names:
        async with Transport(loopback(allow_networks=()), getaddrinfo=names.getaddrinfo) as transport:
            for host in ("127.0.0.1", "[::1]", "bad.example"):
                result = await transport.post(f"http://{host}:{canaries.ports[0]}/", HEADERS, BODY)
                assert (result.outcome, result.failure_class) == (Outcome.DEFINITE, FailureClass.BLOCKED_ADDRESS)
    assert await canaries.connections() == 0


@pytest.mark.parametrize("entry", ["default", "machine 127.0.0.1", "machine localhost"])
async def test_netrc_gives_no_credentials_away(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, entry: str) -> None:
    for name in (".netrc", "_netrc"):
        (tmp_path / name).write_text(f"{entry} login someone password hunter2\n")
        (tmp_path / name).chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    async with Receiver(play.status(401, {"www-authenticate": 'Basic realm="a"'})) as receiver:
        async with Transport(loopback()) as transport:
            for _ in range(2):
                await transport.post(receiver.url, HEADERS, BODY)
        assert len(receiver.requests) == 2
        assert all("authorization" not in request.headers for request in receiver.requests)
