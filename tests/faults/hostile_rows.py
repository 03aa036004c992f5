"""Rows that a careless or hostile producer may commit to the outbox, as data: what is set aside, and what goes through."""

from __future__ import annotations

import json
from typing import Any

PAYLOAD_MAX = 1 << 20
Columns = dict[str, Any]


def header(value: object, name: str = "x-a") -> str:
    return json.dumps({name: value})


# The row's columns, and the column that the reason must name.
SET_ASIDE: dict[str, tuple[Columns, str]] = {
    "type empty": ({"event_type": ""}, "event_type"),
    "type spaces": ({"event_type": "   "}, "event_type"),
    "type LF": ({"event_type": "a.b\n"}, "event_type"),
    "type CR LF and a header": ({"event_type": "a.b\r\nx-evil: 1"}, "event_type"),
    "type 10 kB": ({"event_type": "a" * 10_240}, "event_type"),
    "type emoji": ({"event_type": "a.😀"}, "event_type"),
    "type RTL override": ({"event_type": "a.\u202edb"}, "event_type"),
    "type star": ({"event_type": "*"}, "event_type"),
    "type full width": ({"event_type": "ａ.ｂ"}, "event_type"),
    "tenant empty": ({"tenant_id": ""}, "tenant_id"),
    "tenant unknown": ({"tenant_id": "nobody"}, "tenant_id"),
    "tenant LF": ({"tenant_id": "default\n"}, "tenant_id"),
    "tenant SQL": ({"tenant_id": "'; DROP TABLE tenants; --"}, "tenant_id"),
    "tenant upper case": ({"tenant_id": "DEFAULT"}, "tenant_id"),
    "tenant 1 MB": ({"tenant_id": "t" * (1 << 20)}, "tenant_id"),
    "payload 10 MB": ({"payload": json.dumps("x" * (10 << 20))}, "payload"),
    "payload one byte too long": ({"payload": json.dumps("x" * (PAYLOAD_MAX - 1))}, "payload"),
    "payload that grows as text": ({"payload": f"[{','.join(['1e131071'] * 9)}]"}, "payload"),
    "request id empty": ({"request_id": ""}, "request_id"),
    "request id long": ({"request_id": "r" * 257}, "request_id"),
    "key empty": ({"idempotency_key": ""}, "idempotency_key"),
    "key 1 MB": ({"idempotency_key": "k" * (1 << 20)}, "idempotency_key"),
    "run id empty": ({"run_id": ""}, "run_id"),
    "run id 1 MB": ({"run_id": "r" * (1 << 20)}, "run_id"),
    "ordering key empty": ({"ordering_key": ""}, "ordering_key"),
    "ordering key 1 MB": ({"ordering_key": "o" * (1 << 20)}, "ordering_key"),
    "headers text": ({"headers": '"x-a: b"'}, "headers"),
    "headers array": ({"headers": '[["x-a", "b"]]'}, "headers"),
    "headers number": ({"headers": "1"}, "headers"),
    "headers true": ({"headers": "true"}, "headers"),
    "headers 1,000": ({"headers": json.dumps({f"x-{n}": "v" for n in range(1000)})}, "headers"),
    "headers by case": ({"headers": '{"X-A": "1", "x-a": "2"}'}, "headers"),
    "header 1 MB": ({"headers": header("v" * (1 << 20))}, "headers"),
    "header name 1 MB": ({"headers": header("v", "x" * (1 << 20))}, "headers"),
    **{
        f"header value {value!r}": ({"headers": header(value)}, "headers")
        for value in (
            *(
                "a\r\nx-evil: 1",
                "a\nx-evil: 1",
                "a\rb",
                "\r\n\r\nGET / HTTP/1.1\r\n\r\n",
                "a\r\n folded",
                "a\x0bb",
                "a\x7f",
            ),
            *("a\x1b[31m", "é", "😀", "\u2028", "\u202e", "\x85", "\ufeff", "Ċ", "č"),
            *({"b": "c"}, ["a"], None, True, 1, 1.5),
        )
    },
    **{
        f"header name {name!r}": ({"headers": header("v", name)}, "headers")
        for name in (
            *(
                "",
                " ",
                "x a",
                "x-a ",
                " x-a",
                "x-a:",
                ":authority",
                "x-a\r\nx-evil",
                "x-a\n",
                "x\ta",
                "x(a)",
                "x/a",
                "x@a",
            ),
            *("é", "😀", "x\u00ada", "x-a\u202e", "＊", "ＨＯＳＴ", "x\x7f"),
        )
    },
    **{
        f"reserved {name}": ({"headers": header("forged", name)}, "headers")
        for name in (
            *("Host", "HOST", "Content-Length", "cOnTeNt-LeNgTh", "Transfer-Encoding", "TE", "Trailer", "Expect"),
            *("Connection", "Keep-Alive", "Upgrade", "HTTP2-Settings", "Via", "Max-Forwards", "Cookie", "Set-Cookie"),
            *("Accept-Encoding", "Content-Encoding", "Content-Type", "Traceparent", "User-Agent", "X-Request-Id"),
            *("Proxy-Authorization", "PROXY-CONNECTION", "Webhook-Id", "WEBHOOK-SIGNATURE", "webhook-timestamp"),
            *("webhook-attempt", "X-Webhook-Signature", "x-webhook-anything"),
            *("Webhook_Id", "webhook_signature", "content_length", "X_Webhook_Key_Id", "x_request-id"),
        )
    },
}

_TRACE, _SPAN = "a" * 32, "b" * 16
JUNK_TRACEPARENTS = [
    *("", "junk", "😀", f"00-{_TRACE}-{_SPAN}-01\r\nx-evil: 1", f"00-{_TRACE.upper()}-{_SPAN}-01", "t" * (1 << 20)),
    *(f"00-{'0' * 32}-{_SPAN}-01", f"00-{_TRACE}-{'0' * 16}-01", f"ff-{_TRACE}-{_SPAN}-01"),
    *(f"00-{_TRACE}-{_SPAN}-01-more", f"01-{_TRACE}-{_SPAN}-01-{'c' * 10_000}", f"01-{_TRACE}-{_SPAN}-01-\n"),
]

# What is odd but fine: delivered, with the body exactly as PostgreSQL writes it.
GOES_THROUGH: dict[str, Columns] = {
    "payload of exactly the limit": {"payload": json.dumps("x" * (PAYLOAD_MAX - 2))},
    "payload empty text": {"payload": '""'},
    "payload null": {"payload": "null"},
    "payload 10,000 levels": {"payload": "[" * 10_000 + "]" * 10_000},
    "payload RTL override": {"payload": json.dumps({"\u202egnp.exe": "\u2066\u2069\u200f"}, ensure_ascii=False)},
    "payload emoji": {"payload": json.dumps("👩‍👩‍👧‍👦🏳️‍🌈😀", ensure_ascii=False)},
    "payload escaped pair": {"payload": r'"\ud83d\ude00"'},
    "payload controls": {"payload": r'"\u0001\u001b[2J\u007f\u0085\u2028\u2029\ufeff\uffff\r\n"'},
    "payload zalgo": {"payload": json.dumps("Z" + "\u0335\u0321" * 500, ensure_ascii=False)},
    "payload beyond double": {"payload": "[1e400, -1e400, 1e-400, " + "9" * 100 + ", 0." + "1" * 100 + ", -0, -0.0]"},
    "payload duplicate keys": {"payload": '{"a": 1, "a": 2}'},
    "payload long key": {"payload": json.dumps({"k" * 100_000: 1})},
    "payload 100,000 members": {"payload": json.dumps(dict.fromkeys(map(str, range(50_000)), 0))},
    "payload HTML": {"payload": json.dumps("</script><img src=x onerror=alert(1)>'\"\\${7*7}{{7*7}}")},
    "request id CR LF": {"request_id": "r\r\nx-evil: 1\r\n\r\nGET / HTTP/1.1"},
    "request id emoji": {"request_id": "r😀\u202e"},
    "request id longest": {"request_id": "😀" * 256},
    "request id spaces": {"request_id": "  a b\t"},
    "request id controls": {"request_id": "\x01\x1b[2J\x7f\u0085"},
    "request id null": {"request_id": None},
    "key SQL": {"idempotency_key": "'; DROP TABLE events; --"},
    "key longest": {"idempotency_key": "".join(chr(0x1F300 + n) for n in range(256))},
    "key LF": {"idempotency_key": "\n"},
    "run id odd": {"run_id": "\r\n\u202e😀", "ordering_key": "\x01 "},
    "headers empty": {"headers": "{}"},
    "headers null": {"headers": "null"},
    "header empty": {"headers": header("")},
    "header odd": {"headers": header("\t \" ' \\ %0d%0a ; , =", "!#$%&'*+-.^_`|~09az")},
    "headers most": {"headers": json.dumps({f"x-{n}": "v" * 190 for n in range(20)})},
    "id version 4": {"id": "f47ac10b-58cc-4372-a567-0e02b2c3d479"},
    "id zero": {"id": "00000000-0000-0000-0000-000000000000"},
    "id highest": {"id": "ffffffff-ffff-ffff-ffff-ffffffffffff"},
    "id version 1": {"id": "c232ab00-9414-11ec-b3c8-9e6bdeced846"},
    "created in the future": {"created_at": "2999-01-01"},
    "created long ago": {"created_at": "0002-01-01"},
    "created at 1970": {"created_at": "epoch"},
    **{f"traceparent junk {n}": {"traceparent": junk} for n, junk in enumerate(JUNK_TRACEPARENTS)},
}

# What PostgreSQL refuses when the producer inserts it: never committed, so never ours.
REFUSED_BY_POSTGRES: dict[str, Columns] = {
    "payload NUL": {"payload": r'"\u0000"'},
    "payload lone high surrogate": {"payload": r'"\ud800"'},
    "payload lone low surrogate": {"payload": r'"\ude00"'},
    "payload surrogates turned round": {"payload": r'"\ude00\ud83d"'},
    "payload not JSON": {"payload": "{a: 1}"},
    "payload NaN": {"payload": "NaN"},
    "payload infinity": {"payload": "-Infinity"},
    "payload number without end": {"payload": "1e1000000"},
    "payload bottomless": {"payload": "[" * 1_000_000},
    "header NUL": {"headers": r'{"x-a": "\u0000"}'},
    "header name NUL": {"headers": r'{"x-\u0000": "a"}'},
    "id not a UUID": {"id": "1; DROP TABLE events"},
    "payload null column": {"payload": None},
    "type null": {"event_type": None},
    "tenant null": {"tenant_id": None},
    "created null": {"created_at": None},
    "created nonsense": {"created_at": "yesterdayish"},
}
