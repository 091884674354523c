"""Calls the example by the client that was generated from its document."""

import sys

from paper import AuthenticatedClient, Client
from paper.api.default import balance, health, place_order
from paper.models import Balance, Order, RejectionProblem

url, trader, reader = sys.argv[1:]


def check(response, status, model):
    assert response.status_code == status, response
    assert isinstance(response.parsed, model), response
    if model is RejectionProblem:
        assert response.parsed.status == status
        assert response.headers["cache-control"] == "no-store"


with Client(base_url=url) as anonymous:
    assert health.sync_detailed(client=anonymous).status_code == 200
    response = balance.sync_detailed(client=anonymous)
    check(response, 401, RejectionProblem)
    assert response.headers["www-authenticate"] == 'Bearer realm="api"'

with AuthenticatedClient(base_url=url, token="tg_unknown") as unknown:
    check(balance.sync_detailed(client=unknown), 401, RejectionProblem)

order = Order(symbol="EURUSD", quantity=3)
with AuthenticatedClient(base_url=url, token=reader) as client:
    check(balance.sync_detailed(client=client), 200, Balance)
    response = place_order.sync_detailed(client=client, body=order)
    check(response, 403, RejectionProblem)
    assert 'scope="trade"' in response.headers["www-authenticate"]

with AuthenticatedClient(base_url=url, token=trader) as client:
    response = place_order.sync_detailed(client=client, body=order)
    check(response, 200, Order)
    assert response.parsed == order
    assert response.headers["ratelimit"] == '"default";r=19;t=1'
    for _ in range(19):
        check(balance.sync_detailed(client=client), 200, Balance)
    response = balance.sync_detailed(client=client)
    check(response, 429, RejectionProblem)
    assert response.parsed.violated_policies == ["default"]
    assert int(response.headers["retry-after"]) >= 1

# The other security scheme.
with AuthenticatedClient(base_url=url, token=reader, prefix="", auth_header_name="X-API-Key") as client:
    check(balance.sync_detailed(client=client), 200, Balance)

print("done")
