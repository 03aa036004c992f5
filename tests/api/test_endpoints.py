"""Endpoints over HTTP: their life from creation to archive, and what is refused on the way."""

from __future__ import annotations

import asyncio
import re
from uuid import uuid4

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from app.api.etags import IF_MATCH_PATTERN
from app.endpoints import load_endpoints
from app.sealing import SecretKeys
from app.signing import parse_secret
from tests.api.conftest import problem_of
from tests.factories import make_delivery, make_endpoint, one, rows

URL = "https://example.com/hook"


async def create(client: httpx.AsyncClient, **fields: object) -> dict[str, object]:
    answer = await client.post("/v1/endpoints", json={"url": URL} | fields)
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


async def test_created_endpoint_shows_its_secret_once_and_signs_with_it(
    client: httpx.AsyncClient, engine: AsyncEngine, keys: SecretKeys
) -> None:
    answer = await client.post(
        "/v1/endpoints", json={"url": "HTTPS://Example.com:443/hook", "policy": {"max_attempts": 3}}
    )
    made = answer.json()
    assert answer.headers["location"] == f"/v1/endpoints/{made['id']}"
    assert (made["url"], made["policy"]["max_attempts"], made["status"]) == (URL, 3, "active")
    (shown,) = (await client.get("/v1/endpoints")).json()["items"]
    assert "secret" not in shown
    assert "secret" not in (await client.get(f"/v1/endpoints/{made['id']}")).json()
    async with engine.connect() as connection:
        (loaded,) = (await load_endpoints(connection, keys, [made["id"]])).values()
    assert loaded.keys[0].secret == parse_secret(made["secret"])


async def test_ones_own_secret_is_taken_and_not_repeated(client: httpx.AsyncClient) -> None:
    made = await create(client, secret="whsec_" + "A" * 32)
    assert made["secret"] is None


@pytest.mark.parametrize(
    "fields",
    [
        {"url": "ftp://example.com"},
        {"url": "https://user:pass@example.com"},
        {"url": "https://example.com/#x"},
        {"url": URL, "event_types": []},
        {"url": URL, "event_types": ["a b"]},
        {"url": URL, "scheme": "none"},
        {"url": URL, "policy": {"max_attempts": 0}},
        {"url": URL, "policy": {"max_attempts": "5"}},
        {"url": URL, "policy": {"base": 1}},
        {"url": URL, "secret": "whsec_short"},
        {"url": URL, "tenant_id": "other"},
        {"url": URL, "name": "a\nb"},
        {},
    ],
)
async def test_endpoint_that_is_not_acceptable_is_refused_and_not_made(
    client: httpx.AsyncClient, engine: AsyncEngine, fields: dict[str, object]
) -> None:
    problem_of(await client.post("/v1/endpoints", json=fields), 400, "INT-400-INVALID-PAYLOAD")
    assert await rows(engine, "SELECT FROM endpoints") == []


async def test_change_leaves_alone_what_is_not_given(client: httpx.AsyncClient, engine: AsyncEngine) -> None:
    made = await create(client, name="before", policy={"schedule_s": [1, 2]})
    path = f"/v1/endpoints/{made['id']}"
    changed = (await client.patch(path, json={"name": "after", "url": f"{URL}/secret-path"})).json()
    assert (changed["name"], changed["url"], changed["version"]) == ("after", f"{URL}/secret-path", 2)
    assert changed["policy"]["schedule_s"] == [1, 2]
    changed = (await client.patch(path, json={"policy": {"schedule_s": None, "jitter": 0}})).json()
    assert (changed["policy"]["schedule_s"], changed["policy"]["jitter"]) == (None, 0)
    told = await rows(engine, "SELECT before, after FROM audit_events WHERE action = 'endpoint.changed' ORDER BY id")
    assert told[0].after == {"name": "after", "url": "https://example.com"}


async def test_change_that_changes_nothing_makes_no_new_version(client: httpx.AsyncClient) -> None:
    made = await create(client, name="same")
    assert (await client.patch(f"/v1/endpoints/{made['id']}", json={"name": "same"})).json()["version"] == 1


async def test_of_two_editors_who_saw_the_same_one_is_refused(client: httpx.AsyncClient) -> None:
    path = f"/v1/endpoints/{(await create(client))['id']}"
    tag = (await client.get(path)).headers["etag"]
    answers = await asyncio.gather(
        *(client.patch(path, json={"name": name}, headers={"if-match": tag}) for name in ("one", "other"))
    )
    assert sorted(a.status_code for a in answers) == [200, 412]
    (late,) = (a for a in answers if a.status_code == 412)
    problem_of(late, 412, "INT-412-PRECONDITION-FAILED")


@pytest.mark.parametrize(
    ("tag", "status"),
    [
        *(('"1-1"', 200), ("*", 200), (' "1-1"\t', 200), ('"9-1", "1-1"', 200), ('"9-1",, "1-1",', 200)),
        *(('W/"a","1-1"', 200), ('"a,b","1-1"', 200)),
        *(
            ('W/"1-1"', 412),
            ('"abc"', 412),
            ('W/"*"', 412),
            ('"*"', 412),
            ('"a*b"', 412),
            ('W/"a","b"', 412),
            ('""', 412),
        ),
        *(("", 400), (" ", 400), ("1-1", 400), (",", 400), ('"1-1', 400), ('"a b"', 400), ('"1-1" "2-1"', 400)),
        *(('*, "1-1"', 400), ('w/"1-1"', 400), ('"é"', 400)),
    ],
)
async def test_if_match_is_compared_as_rfc_9110_says(client: httpx.AsyncClient, tag: str, status: int) -> None:
    path = f"/v1/endpoints/{(await create(client))['id']}"
    headers = {"if-match": tag.encode("latin-1")}
    for answer in (
        await client.patch(path, json={"name": "x"}, headers=headers),
        await client.delete(path, headers=headers | {"if-match": tag.replace("1-1", "2-1").encode("latin-1")}),
    ):
        if status == 400:
            assert problem_of(answer, 400, "INT-400-INVALID-PAYLOAD")["errors"][0]["pointer"] == "header/If-Match"
        assert answer.status_code in ((200, 204) if status == 200 else (status,)), answer.text


async def test_if_match_in_several_lines_is_one_list(client: httpx.AsyncClient) -> None:
    path = f"/v1/endpoints/{(await create(client))['id']}"
    for lines, status in (
        (('"9-9"', '"1-1"'), 200),
        (('"1-1"', "x"), 400),
        (('"8-8"', '"9-9"'), 412),
        (("*", "*"), 400),
    ):
        answer = await client.patch(path, json={}, headers=[("if-match", line) for line in lines])
        assert answer.status_code == status


def test_if_match_is_described_as_what_is_accepted() -> None:
    for tags, fits in (
        ("", False),
        ('"3-1"', True),
        ('"abc"', True),
        ('W/"1-1", "2"', True),
        ("*", True),
        ("3-1", False),
    ):
        assert bool(re.search(IF_MATCH_PATTERN, tags)) is fits


async def test_what_is_unchanged_is_not_sent_again(client: httpx.AsyncClient) -> None:
    path = f"/v1/endpoints/{(await create(client))['id']}"
    tag = (await client.get(path)).headers["etag"]
    for known in (tag, f"W/{tag}", f'"x", {tag}', "*"):
        answer = await client.get(path, headers={"if-none-match": known})
        assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", tag)
    for other in ('"9-9"', "", f"x{tag}", tag.strip('"'), '"*"'):
        assert (await client.get(path, headers={"if-none-match": other})).status_code == 200


async def test_pause_and_resume_hold_and_free_what_waits(client: httpx.AsyncClient, engine: AsyncEngine) -> None:
    endpoint_id = await make_endpoint(engine)
    path = f"/v1/endpoints/{endpoint_id}"
    assert (await client.post(f"{path}/pause", json={"reason": "maintenance"})).json()["status"] == "paused"
    problem_of(await client.post(f"{path}/pause", json={}), 409, "INT-409-CONFLICT")
    delivery = await make_delivery(engine, endpoint_id=endpoint_id)
    await rows(engine, "UPDATE deliveries SET due_at = 'infinity', lease_owner = NULL WHERE id = :id", id=delivery.id)
    assert (await client.post(f"{path}/resume", json={})).json() == {
        "id": str(endpoint_id),
        "status": "active",
        "deliveries_freed": 1,
    }
    told = [
        r.actor for r in await rows(engine, "SELECT actor FROM audit_events WHERE subject = :id", id=str(endpoint_id))
    ]
    assert len(told) == 2
    assert all(actor.startswith("key:") for actor in told)


async def test_archived_endpoint_stays_listed_and_cannot_be_used(
    client: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    path = f"/v1/endpoints/{(await create(client))['id']}"
    assert (await client.delete(path, params={"reason": "customer left"})).status_code == 204
    assert (await client.delete(path)).status_code == 204
    assert (await client.get(path)).json()["status"] == "archived"
    assert len((await client.get("/v1/endpoints", params={"status": "archived"})).json()["items"]) == 1
    for answer in (
        await client.patch(path, json={"name": "x"}),
        await client.post(f"{path}/resume", json={}),
        await client.post(f"{path}/rotate-secret", json={}),
        await client.post(f"{path}/test-event"),
    ):
        problem_of(answer, 409, "INT-409-CONFLICT")
    assert (await one(engine, "SELECT count(*) FROM audit_events WHERE action = 'endpoint.archived'")).count == 1


async def test_archive_with_an_old_etag_is_refused(client: httpx.AsyncClient) -> None:
    path = f"/v1/endpoints/{(await create(client))['id']}"
    answer = await client.delete(path, headers={"if-match": '"9-9"'})
    problem_of(answer, 412, "INT-412-PRECONDITION-FAILED")


async def test_rotated_secret_overlaps_with_the_old_one(client: httpx.AsyncClient) -> None:
    path = f"/v1/endpoints/{(await create(client))['id']}"
    before = (await client.get(path)).headers["etag"]
    rotated = (await client.post(f"{path}/rotate-secret", json={"overlap_s": 60, "reason": "leaked"})).json()
    assert rotated["secret"].startswith("whsec_")
    shown = await client.get(path)
    assert shown.headers["etag"] != before
    assert [key["expires_at"] is None for key in shown.json()["signing_keys"]] == [True, False]
    assert shown.json()["signing_keys"][1]["key_id"] == rotated["expiring"][0]["key_id"]


async def test_test_event_goes_to_this_endpoint_alone(client: httpx.AsyncClient, engine: AsyncEngine) -> None:
    wanted = await make_endpoint(engine, event_types=["invoice.paid"])
    await make_endpoint(engine)
    sent = (await client.post(f"/v1/endpoints/{wanted}/test-event")).json()
    (delivery,) = await rows(engine, "SELECT * FROM deliveries")
    assert (str(delivery.id), delivery.endpoint_id, delivery.state) == (sent["delivery_id"], wanted, "pending")
    found = (await client.get(f"/v1/events/{sent['request_id']}")).json()["items"]
    assert [event["event_type"] for event in found] == ["homing.test"]


async def test_pages_of_endpoints_show_each_once(client: httpx.AsyncClient, engine: AsyncEngine) -> None:
    made = {str(await make_endpoint(engine)) for _ in range(5)}
    seen: list[str] = []
    path = "/v1/endpoints?limit=2"
    while path:
        answer = await client.get(path)
        seen += [endpoint["id"] for endpoint in answer.json()["items"]]
        path = answer.links.get("next", {}).get("url", "")
    assert (len(seen), set(seen)) == (5, made)


@pytest.mark.parametrize("path", ["", "/pause", "/resume", "/rotate-secret", "/test-event"])
async def test_unknown_endpoint_is_not_found(client: httpx.AsyncClient, path: str) -> None:
    method = "GET" if not path else "POST"
    body = {} if path in ("/pause", "/resume", "/rotate-secret") else None
    answer = await client.request(method, f"/v1/endpoints/{uuid4()}{path}", json=body)
    problem_of(answer, 404, "INT-404-NOT-FOUND")
