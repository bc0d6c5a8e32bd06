"""A small and quick JSON-RPC client over one WebSocket (RFC 6455, client side), for measuring.

A call's time runs from the first byte handed to the kernel to the last byte of the reply: encoding and decoding JSON in Python
are left out of it and told apart. The masking key is zero, which the RFC's arithmetic allows, so that XOR in Python is not
measured; the server unmasks all the same.
"""

import base64
import json
import os
import socket
import struct
import time
from urllib.parse import urlparse

TEXT, CLOSE, PING, PONG = 1, 8, 9, 10
FINAL, MASKED = 0x80, 0x80
ZERO_MASK = b"\0\0\0\0"
TIMEOUT_S = 60


class WireError(Exception):
    """The connection ended, or the server answered with an error."""


class Connection:
    """One kept-alive connection; calls run one at a time."""

    def __init__(self, url, token):
        address = urlparse(url)
        self.socket = socket.create_connection((address.hostname, address.port), timeout=TIMEOUT_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.stream = self.socket.makefile("rb", buffering=1 << 16)
        self.last_id = 0
        self._upgrade(address.netloc, token)

    def _upgrade(self, host, token):
        key = base64.b64encode(os.urandom(16)).decode()
        authorization = f"Authorization: Bearer {token}\r\n" if token else ""
        self.socket.sendall(
            f"GET / HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n{authorization}\r\n".encode()
        )
        status = self.stream.readline().decode("latin-1").strip()
        if status.split(" ")[1:2] != ["101"]:
            raise WireError(f"the upgrade was answered {status!r}")
        while self.stream.readline().strip():
            pass

    def close(self):
        self.stream.close()
        self.socket.close()

    def prepare(self, method, **params):
        """A request as a ready frame, and its id."""
        self.last_id += 1
        text = json.dumps({"jsonrpc": "2.0", "id": self.last_id, "method": method, "params": params})
        return self.last_id, frame(TEXT, text.encode())

    def exchange(self, request_id, ready_frame):
        """Sends a prepared request; gives the raw reply and the seconds it took on the wire and in the server."""
        started = time.perf_counter()
        self.socket.sendall(ready_frame)
        reply = self.message()
        took = time.perf_counter() - started
        return result(request_id, reply), took

    def call(self, method, **params):
        """Result and seconds of one call."""
        return self.exchange(*self.prepare(method, **params))

    def command(self, session, **fields):
        """A command that must succeed: its CommandResult and seconds."""
        result, took = self.call("session.execute", sessionId=session, command=fields)
        if not result["success"]:
            raise WireError(f"{fields['type']}: {result.get('errorKind')}: {result.get('error')}")
        return result, took

    def send(self, ready_frames):
        """Prepared frames, one or several; their replies are to be read with `message`."""
        self.socket.sendall(ready_frames)

    def message(self):
        """The next whole text message; pings in between are answered."""
        parts = []
        while True:
            first, second = self._read(2)
            length = second & 0x7F
            if length == 126:
                (length,) = struct.unpack("!H", self._read(2))
            elif length == 127:
                (length,) = struct.unpack("!Q", self._read(8))
            payload = self._read(length)
            opcode = first & 0x0F
            if opcode == PING:
                self.socket.sendall(frame(PONG, payload))
            elif opcode == CLOSE:
                raise WireError("the server closed the connection")
            elif opcode != PONG:
                parts.append(payload)
                if first & FINAL:
                    return b"".join(parts)

    def _read(self, count):
        data = self.stream.read(count)
        if len(data) != count:
            raise WireError("the connection ended in the middle of a frame")
        return data


def result(request_id, reply):
    """What a raw reply to this request says, which must be success."""
    value = json.loads(reply)
    if value.get("id") != request_id:
        raise WireError(f"a reply to {value.get('id')!r} came where one to {request_id} was due")
    if "error" in value:
        raise WireError(f"{value['error'].get('code')}: {value['error'].get('message')}")
    return value["result"]


def frame(opcode, payload):
    """One final frame, masked with zeros."""
    length = len(payload)
    if length < 126:
        header = struct.pack("!BB", FINAL | opcode, MASKED | length)
    elif length < 65536:
        header = struct.pack("!BBH", FINAL | opcode, MASKED | 126, length)
    else:
        header = struct.pack("!BBQ", FINAL | opcode, MASKED | 127, length)
    return header + ZERO_MASK + payload
