"""A service behind the proxy. Its response is JSON with the method, the target and the header fields that it got.

It has no code for tokens. A request without X-Auth-Subject is a CORS preflight, or did not come through the gate.
"""

import base64
import hashlib
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from sys import argv


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = self.chunks()
        request = {"method": self.command, "target": self.path, "headers": self.headers.items(), "body": body}
        content = json.dumps(request).encode()
        upgrade = self.headers.get("Upgrade", "").lower(), self.headers.get("Connection", "").lower()
        has_caller = bool(self.headers.get("X-Auth-Subject"))
        if has_caller and upgrade == ("websocket", "upgrade") and "Sec-WebSocket-Key" in self.headers:
            return self.socket(content)
        is_admitted = has_caller or self.command == "OPTIONS"
        self.send_response(200 if is_admitted else 403)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_OPTIONS = answer

    def chunks(self):
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body.decode()

    def socket(self, content):
        """Accepts a WebSocket (RFC 6455), sends one text message, and repeats the messages of the client, each under 126 bytes."""
        key = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", base64.b64encode(hashlib.sha1(key.encode()).digest()).decode())
        self.end_headers()
        self.wfile.write(b"\x81\x7e" + len(content).to_bytes(2, "big") + content)
        while head := self.rfile.read(2):
            mask = self.rfile.read(4)
            data = bytes(byte ^ mask[at % 4] for at, byte in enumerate(self.rfile.read(head[1] & 0x7F)))
            self.wfile.write(bytes([head[0], len(data)]) + data)
            if head[0] & 0x0F == 8:
                break
        self.close_connection = True

    def log_message(self, *args):
        pass


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", int(argv[1]) if len(argv) > 1 else 5000), Handler)
    print(server.server_address[1], flush=True)
    server.serve_forever()
