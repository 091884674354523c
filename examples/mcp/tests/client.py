"""An MCP client with the official Python SDK: `client.py URL MODE`. It authorizes, calls tools, gets more scopes, connects a second
time, and calls until it is limited. Prints what happens, an event a line."""

import asyncio
import sys
from contextlib import AsyncExitStack
from urllib.parse import parse_qs, urljoin, urlsplit

import httpx2
from mcp import Client, MCPError
from mcp.client.auth import OAuthClientProvider
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.auth import AuthorizationCodeResult, OAuthClientMetadata

CALLBACK = "http://127.0.0.1:1/callback"


class Memory:
    """The tokens and the client id, for the provider."""

    tokens = client_info = None

    async def get_tokens(self):
        return self.tokens

    async def set_tokens(self, tokens):
        self.tokens = tokens

    async def get_client_info(self):
        return self.client_info

    async def set_client_info(self, client_info):
        self.client_info = client_info


async def browse(url):
    """Does what a browser does: follows the redirects of the authorization server up to the one for the client."""
    async with httpx2.AsyncClient() as browser:
        while not url.startswith(CALLBACK):
            response = await browser.get(url)
            url = urljoin(url, response.headers["location"])
    return {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}


def provider(url):
    callbacks = []

    async def redirect(url):
        query = parse_qs(urlsplit(url).query)
        print(f"authorize scope={query['scope'][0]} resource={query['resource'][0]}")
        callbacks.append(await browse(url))

    async def callback():
        query = callbacks.pop()
        return AuthorizationCodeResult(code=query["code"], state=query["state"], iss=query["iss"])

    metadata = OAuthClientMetadata(redirect_uris=[CALLBACK], token_endpoint_auth_method="none")
    return OAuthClientProvider(url, metadata, Memory(), redirect, callback)


async def observe(response):
    """Prints the rejections that the SDK gets."""
    if response.status_code in (401, 403, 429):
        field = "retry-after" if response.status_code == 429 else "www-authenticate"
        print(f"{response.status_code} {field}: {response.headers[field]}")


async def connect(url, mode, stack):
    http = httpx2.AsyncClient(auth=provider(url), event_hooks={"response": [observe]})
    await stack.enter_async_context(http)
    client = await stack.enter_async_context(Client(streamable_http_client(url, http_client=http), mode=mode))
    print(f"connected {client.protocol_version}")

    async def call(name, arguments):
        try:
            result = await client.call_tool(name, arguments)
            print(result.content[0].text)
        except MCPError as error:
            print(f"error: {error}")

    return call


async def main():
    url, mode = sys.argv[1:]
    order = {"symbol": "ACME", "quantity": 3}
    async with AsyncExitStack() as stack:
        first = await connect(url, mode, stack)
        await first("quote", {"symbol": "ACME"})
        await first("place_order", order)
        await first("quote", {"symbol": "ACME"})
        second = await connect(url, mode, stack)
        await second("place_order", order)
        await second("place_order", order)
        await first("place_order", order)


asyncio.run(main())
