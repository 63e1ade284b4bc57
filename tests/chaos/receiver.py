"""A receiver of events that may be killed: an event is in its file before it is accepted.

Started as a program, with its port and the file.
"""

import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with WRITING, FILE.open("ab") as file:
            file.write(b"\n%s\n" % body)  # after the beginning of a line that was cut by the death of the process
        self.do_GET()

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Log nothing."""


if __name__ == "__main__":
    PORT, FILE, WRITING = int(sys.argv[1]), Path(sys.argv[2]), Lock()
    ThreadingHTTPServer(("127.0.0.1", PORT), _Handler).serve_forever()
