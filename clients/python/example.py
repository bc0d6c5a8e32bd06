#!/usr/bin/env python3
"""A CodeBeaker session from Python's standard library alone: example.py URL TOKEN.

It opens the WebSocket by hand, so that it runs without installing anything; a program of yours would use a WebSocket library.
"""

import base64
import json
import os
import socket
import struct
import sys
from urllib.parse import urlparse


class Connection:
    """A WebSocket that carries JSON-RPC 2.0 text frames (RFC 6455, client side)."""

    def __init__(self, url, token):
        address = urlparse(url)
        if address.scheme != "ws" or not address.hostname:
            sys.exit(f"error: {url!r} is no server address\nhint: write it as ws://HOST:PORT")
        try:
            self.socket = socket.create_connection((address.hostname, address.port or 80), timeout=60)
        except OSError as error:
            sys.exit(f"error: can't connect to {url}: {error}\nhint: is the server running? `codebeaker serve` starts it")
        self.stream = self.socket.makefile("rb")
        self.last_id = 0
        key = base64.b64encode(os.urandom(16)).decode()
        self.socket.sendall(
            f"GET / HTTP/1.1\r\nHost: {address.netloc}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\nAuthorization: Bearer {token}\r\n\r\n".encode()
        )
        status = self.stream.readline().decode().strip()
        if " 101 " not in status + " ":
            sys.exit(f"error: the server answered {status!r}\nhint: the token is in the file `token` of the server's state directory")
        while self.stream.readline().strip():
            pass

    def send(self, text):
        data, mask = text.encode(), os.urandom(4)
        length = len(data)
        if length < 126:
            header = struct.pack("!BB", 0x81, 0x80 | length)
        elif length < 65536:
            header = struct.pack("!BBH", 0x81, 0x80 | 126, length)
        else:
            header = struct.pack("!BBQ", 0x81, 0x80 | 127, length)
        self.socket.sendall(header + mask + bytes(byte ^ mask[i % 4] for i, byte in enumerate(data)))

    def receive(self):
        """The next text message; pings are not answered: the example is shorter than two of them."""
        message = b""
        while True:
            header = self.stream.read(2)
            if len(header) < 2:
                sys.exit("error: the connection to the server was lost")
            first, second = header
            length = second & 0x7F
            if length == 126:
                (length,) = struct.unpack("!H", self.stream.read(2))
            elif length == 127:
                (length,) = struct.unpack("!Q", self.stream.read(8))
            payload = self.stream.read(length)
            if first & 0x0F in (0, 1):
                message += payload
                if first & 0x80:
                    return json.loads(message)
            elif first & 0x0F == 8:
                sys.exit("error: the server closed the connection")

    def call(self, method, **params):
        self.last_id += 1
        self.send(json.dumps({"jsonrpc": "2.0", "id": self.last_id, "method": method, "params": params}))
        while True:
            reply = self.receive()
            if reply.get("id") == self.last_id:
                if "error" in reply:
                    sys.exit(f"error: {method}: {json.dumps(reply['error'], indent=2)}")
                return reply["result"]


def main():
    if sys.argv[1:] in (["-h"], ["--help"]):
        return print(__doc__.strip())
    if len(sys.argv) != 3:
        sys.exit("usage: example.py URL TOKEN   (example.py --help says more)")
    connection = Connection(sys.argv[1], sys.argv[2])
    session = connection.call("session.create", language="python")
    walls = session["enforcement"]["walls"]
    standing = [wall["name"] for wall in walls if wall["state"] == "enforced"]
    print(f"session {session['sessionId']} in {session['runtimeType']}")
    print(f"walls that stand: {', '.join(standing)}")

    def command(**fields):
        return connection.call("session.execute", sessionId=session["sessionId"], command=fields)

    written = command(type="write_file", path="greet.py", content="import sys, os\nprint('hello', sys.argv[1], 'from uid', os.getuid())\n")
    print(f"write_file: {written['result']['bytes']} bytes")
    ran = command(type="execute_shell", commandName="python3", args=["greet.py", "beaver"])
    print(f"execute_shell: {ran['result']['stdout'].strip()!r}, exit code {ran['result']['exitCode']}, {ran['durationMs']} ms")

    connection.last_id += 1
    connection.send(json.dumps({
        "jsonrpc": "2.0", "id": connection.last_id, "method": "session.stream",
        "params": {"sessionId": session["sessionId"], "command": {
            "type": "execute_code", "code": "import time\nfor i in range(3):\n    print('tick', i, flush=True)\n    time.sleep(0.1)\n"}},
    }))
    while True:
        event = connection.receive()
        if "error" in event:
            sys.exit(f"error: session.stream: {event['error']}")
        if event.get("method") != "session.output":
            continue
        event = event["params"]["result"]
        if event["type"] == "exited":
            print(f"streamed to the end: success {event['result']['success']}")
            break
        if event["type"] == "stdout":
            print(f"streamed: {event['data'].strip()!r}")

    refused = command(type="execute_code", code="import socket\nsocket.create_connection(('192.0.2.1', 80), timeout=2)")
    print(f"no network: {refused['errorKind']}: {refused['result']['stderr'].strip().splitlines()[-1]}")
    files = command(type="list_directory", path=".")
    print(f"files: {', '.join(entry['name'] for entry in files['result']['entries'])}")
    print(f"closed: {connection.call('session.close', sessionId=session['sessionId'])['closed']}")


if __name__ == "__main__":
    main()
