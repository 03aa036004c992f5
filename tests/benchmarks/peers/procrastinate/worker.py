"""One worker process, on the faster event loop."""

from __future__ import annotations

import uvloop
from tasks import work

uvloop.run(work())
