"""Every listing page by page: nothing is skipped or repeated while rows are added, and a cursor means one listing only."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from uuid import uuid4

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.api.conftest import Knock, problem_of
from tests.factories import make_delivery, make_endpoint, make_tenant, rows

Add = Callable[[], Awaitable[object]]


class Listing:
    """One listing, and how another row comes into it."""

    def __init__(self, client: httpx.AsyncClient, engine: AsyncEngine) -> None:
        self.client = client
        self.engine = engine
        self.path = ""
        self.id = "id"
        self.add: Add = self._nothing

    async def _nothing(self) -> None:
        raise NotImplementedError

    async def of(self, name: str) -> Listing:
        """Know how to add to the listing with this name."""
        endpoint_id = await make_endpoint(self.engine)

        async def delivery() -> None:
            await make_delivery(self.engine, endpoint_id=endpoint_id)

        async def dead_letter() -> None:
            await make_delivery(self.engine, "dead_lettered", endpoint_id=endpoint_id)

        async def endpoint() -> None:
            await make_endpoint(self.engine)

        async def replay() -> None:
            failed = await make_delivery(self.engine, "failed", endpoint_id=endpoint_id)
            path = f"/v1/deliveries/{failed.id}/retry"
            assert (await self.client.post(path, json={"reason": "x"})).status_code == 202

        async def act() -> None:
            await rows(
                self.engine,
                "INSERT INTO audit_events (tenant_id, action, subject, actor) VALUES ('default', 'a.b', 's', 'test')",
            )

        async def key() -> None:
            assert (await self.client.post("/v1/keys", json={"scopes": ["admin"]})).status_code == 201

        async def tenant() -> None:
            await make_tenant(self.engine, f"t-{uuid4()}")

        self.path, self.add, self.id = {
            "deliveries": ("/v1/deliveries", delivery, "id"),
            "deliveries of an endpoint": (f"/v1/deliveries?endpoint_id={endpoint_id}&state=pending", delivery, "id"),
            "endpoints": ("/v1/endpoints", endpoint, "id"),
            "dead letters": ("/v1/dead-letters?status=open", dead_letter, "id"),
            "queue": ("/v1/recovery/queue", dead_letter, "recovery_id"),
            "queue of an endpoint": (f"/v1/endpoints/{endpoint_id}/recovery/queue", dead_letter, "recovery_id"),
            "replays": ("/v1/replays", replay, "replay_id"),
            "audit": ("/v1/audit", act, "id"),
            "keys": ("/v1/keys", key, "id"),
            "tenants": ("/v1/tenants", tenant, "id"),
        }[name]
        return self

    async def page(self, limit: int, path: str = "") -> httpx.Response:
        path = path or f"{self.path}{'&' if '?' in self.path else '?'}limit={limit}"
        answer = await self.client.get(path)
        assert answer.status_code == 200, answer.text
        return answer


NAMES = (
    *("deliveries", "deliveries of an endpoint", "endpoints", "dead letters", "queue", "queue of an endpoint"),
    *("replays", "audit", "keys", "tenants"),
)


@pytest.fixture
async def listing(request: pytest.FixtureRequest, knock: Knock, engine: AsyncEngine) -> Listing:
    operator = request.param == "tenants"
    client = await (knock(tenant_id=None, scopes=("admin",)) if operator else knock())
    found = await Listing(client, engine).of(request.param)
    for _ in range(7):
        await found.add()
    return found


@pytest.mark.parametrize("listing", NAMES, indirect=True)
async def test_nothing_is_skipped_or_repeated_while_rows_are_added(listing: Listing) -> None:
    there = [row[listing.id] for row in (await listing.page(200)).json()["items"]]
    assert len(there) >= 7
    seen: list[str] = []
    answer = await listing.page(2)
    while True:
        items = [row[listing.id] for row in answer.json()["items"]]
        assert len(items) <= 2
        seen += items
        following = answer.links.get("next", {}).get("url")
        assert (following is None) == (answer.json()["next"] is None)
        if following is None or len(seen) > 50:
            break
        if len(seen) < 16:  # where new rows may come after the cursor, the end must come within reach
            await listing.add()
        answer = await listing.page(2, following)
    assert len(seen) == len(set(seen))
    assert [i for i in seen if i in there] == there
    if listing.path not in ("/v1/keys", "/v1/tenants"):  # by id: what is new may be further on
        assert seen == there


@pytest.mark.parametrize("listing", NAMES, indirect=True)
async def test_cursor_that_is_not_of_this_listing_is_refused(listing: Listing) -> None:
    cursor = str((await listing.page(1)).json()["next"])
    joined = "&" if "?" in listing.path else "?"
    elsewhere = "/v1/endpoints?status=active&" if listing.path not in ("/v1/keys", "/v1/tenants") else None
    changed = ("B" if cursor[0] != "B" else "C") + cursor[1:-1] + ("A" if cursor[-1] != "A" else "Q")
    paths = [f"{listing.path}{joined}cursor={changed}"]
    paths += [f"{elsewhere}cursor={cursor}"] if elsewhere else []
    for path in paths:
        problem = problem_of(await listing.client.get(path), 400, "INT-400-INVALID-PAYLOAD")
        assert problem["errors"][0]["pointer"] == "query/cursor"


async def test_tenants_own_key_sees_itself_alone_whatever_page_it_asks_for(knock: Knock, engine: AsyncEngine) -> None:
    for name in ("a", "zz"):
        await make_tenant(engine, name)
    client = await knock(tenant_id="zz")
    assert [t["id"] for t in (await client.get("/v1/tenants?limit=1")).json()["items"]] == ["zz"]
