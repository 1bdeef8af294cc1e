"""The stock `openai` client, speaking to the API in this process."""

import httpx2
from openai import OpenAI
from starlette.testclient import TestClient


class InProcess(httpx2.BaseTransport):
    """Hands a request to the test's client, path and body as they came, and the answer back."""

    def __init__(self, client: TestClient) -> None:
        self.client = client

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        answer = self.client.request(
            request.method, str(request.url), content=request.read(), headers=dict(request.headers)
        )
        headers = {name: value for name, value in answer.headers.items() if name != "content-length"}
        return httpx2.Response(answer.status_code, headers=headers, content=answer.content, request=request)


def stock(client: TestClient) -> OpenAI:
    """By the key that the test's client has."""
    key = client.headers["Authorization"].removeprefix("Bearer ")
    http = httpx2.Client(transport=InProcess(client))
    return OpenAI(api_key=key, base_url="http://testserver/v1", http_client=http, max_retries=0)
