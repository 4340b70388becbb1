"""The host's event stream: a websocket client of the standard library alone.

Only what listening needs: the opening handshake of RFC 6455, frames from the
server, an answer to its pings. Nothing else is ever sent.
"""

from __future__ import annotations

import base64
import html
import json
import os
import socket
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import urlsplit

_CONTINUATION, _TEXT, _BINARY, _CLOSE, _PING, _PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
_BINARY_PROGRESS_TEXT = 3  # the host's protocol.py: BinaryEventTypes.TEXT


class Event(NamedTuple):
    """One message of the host, such as ``executing``, ``progress`` or ``progress_text``."""

    kind: str
    data: dict[str, Any]


class EventStream:
    """Listens to a host as one of its clients.

    A node's status lines and previews only reach the client that queued the
    prompt, so pass the same ``client_id`` with the prompt.
    """

    def __init__(self, url: str, client_id: str) -> None:
        address = urlsplit(url)
        host, port = address.hostname or "127.0.0.1", address.port or 80
        self._socket = socket.create_connection((host, port), timeout=30)
        self._buffer = b""
        key = base64.b64encode(os.urandom(16)).decode()
        self._socket.sendall(
            f"GET /ws?clientId={client_id} HTTP/1.1\r\nHost: {host}:{port}\r\n"
            "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Key: {key}\r\n\r\n".encode()
        )
        while b"\r\n\r\n" not in self._buffer:
            self._receive()
        head, self._buffer = self._buffer.split(b"\r\n\r\n", 1)
        if b" 101 " not in head.split(b"\r\n", 1)[0]:
            raise ConnectionError(f"The host refused a websocket: {head[:200]!r}")

    def __iter__(self) -> Iterator[Event]:
        """Yields events until the host closes the stream."""
        message = b""
        message_type = _TEXT
        while True:
            try:
                final, opcode, payload = self._frame()
            except ConnectionError:
                return
            if opcode == _CLOSE:
                return
            if opcode == _PING:
                self._pong(payload)
            elif opcode in (_CONTINUATION, _TEXT, _BINARY):
                message += payload
                message_type = opcode or message_type
                if final:
                    yield _decode(message_type, message)
                    message = b""

    def wait_at_most(self, seconds: float | None) -> None:
        """Makes reading raise ``TimeoutError`` after so many seconds of silence."""
        self._socket.settimeout(seconds)

    def close(self) -> None:
        self._socket.close()

    def _receive(self) -> None:
        chunk = self._socket.recv(65536)
        if not chunk:
            raise ConnectionError("The host closed the connection.")
        self._buffer += chunk

    def _read(self, num_bytes: int) -> bytes:
        while len(self._buffer) < num_bytes:
            self._receive()
        taken, self._buffer = self._buffer[:num_bytes], self._buffer[num_bytes:]
        return taken

    def _frame(self) -> tuple[bool, int, bytes]:
        first, second = self._read(2)
        length = second & 0x7F
        if length == 126:
            (length,) = struct.unpack(">H", self._read(2))
        elif length == 127:
            (length,) = struct.unpack(">Q", self._read(8))
        return bool(first & 0x80), first & 0x0F, self._read(length)

    def _pong(self, payload: bytes) -> None:
        mask = os.urandom(4)  # a client must mask what it sends
        masked = bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))
        self._socket.sendall(bytes([0x80 | _PONG, 0x80 | len(payload)]) + mask + masked)


def _decode(message_type: int, message: bytes) -> Event:
    if message_type == _TEXT:
        body = json.loads(message)
        return Event(body["type"], body.get("data") or {})
    (kind,) = struct.unpack(">I", message[:4])
    if kind != _BINARY_PROGRESS_TEXT:
        return Event("preview", {"bytes": message[4:]})
    (id_length,) = struct.unpack(">I", message[4:8])
    node, text = message[8 : 8 + id_length], message[8 + id_length :]
    # As a page shows it, and as it was sent.
    shown = html.unescape(text.decode()).replace("  \n", "\n")
    return Event("progress_text", {"node": node.decode(), "text": shown, "sent": text.decode()})
