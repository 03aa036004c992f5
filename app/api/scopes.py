"""Which scope each route needs: the one place where that is said. A route that is not here cannot be added."""

from __future__ import annotations

from typing import Final

from app.api_keys import Scope

SCOPE_OF: Final[dict[str, Scope]] = {
    "publishEvent": Scope.EVENTS_WRITE,
    "getEvents": Scope.DELIVERIES_READ,
    "createEndpoint": Scope.ENDPOINTS_WRITE,
    "listEndpoints": Scope.DELIVERIES_READ,
    "getEndpoint": Scope.DELIVERIES_READ,
    "changeEndpoint": Scope.ENDPOINTS_WRITE,
    "archiveEndpoint": Scope.ENDPOINTS_WRITE,
    "pauseEndpoint": Scope.ENDPOINTS_WRITE,
    "resumeEndpoint": Scope.ENDPOINTS_WRITE,
    "rotateEndpointSecret": Scope.ENDPOINTS_WRITE,
    "sendTestEvent": Scope.ENDPOINTS_WRITE,
    "listDeliveries": Scope.DELIVERIES_READ,
    "getDelivery": Scope.DELIVERIES_READ,
    "retryDelivery": Scope.REPLAY_WRITE,
    "listRecoveryQueue": Scope.DELIVERIES_READ,
    "listEndpointRecoveryQueue": Scope.DELIVERIES_READ,
    "replayRecovery": Scope.REPLAY_WRITE,
    "listDeadLetters": Scope.DELIVERIES_READ,
    "listDeadLetterGroups": Scope.DELIVERIES_READ,
    "getDeadLetter": Scope.DELIVERIES_READ,
    "createReplay": Scope.REPLAY_WRITE,
    "listReplays": Scope.DELIVERIES_READ,
    "getReplay": Scope.DELIVERIES_READ,
    "cancelReplay": Scope.REPLAY_WRITE,
    "listAudit": Scope.AUDIT_READ,
    "createTenant": Scope.ADMIN,
    "listTenants": Scope.ADMIN,
    "createKey": Scope.ADMIN,
    "listKeys": Scope.ADMIN,
    "revokeKey": Scope.ADMIN,
}
