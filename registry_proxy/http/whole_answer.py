"""Answers of bytes, to requests that no handler sees."""

from email.utils import formatdate
from http import HTTPStatus


def whole_answer(status: int, content_type: str, body: bytes, *fields: str) -> bytes:
    """Return an answer that ends its connection, with the header ``fields`` besides those that every answer has."""
    head = [
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
        f"Content-Type: {content_type}",
        f"Content-Length: {len(body)}",
        *fields,
        "Server: registry-proxy",
        f"Date: {formatdate(usegmt=True)}",
        "Connection: close",
    ]
    return "\r\n".join([*head, "", ""]).encode() + body
