"""An upstream for scripts/e2e that answers with what reached it, to see what the Gateway passes on.

    echo.py NAME PORT [break]

Answers {"name","method","path","headers":[[name, value], …]} as JSON. With `break` it reads each call,
then closes the connection without an answer, as a replica does that dies. Calls are counted in a
line each on standard output.
"""

import json
import socket
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

NAME, PORT, *BREAK = sys.argv[1:]


class Echo(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        print(self.command, self.path, flush=True)
        if BREAK:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        seen = {"name": NAME, "method": self.command, "path": self.path, "headers": self.headers.items()}
        body = json.dumps(seen).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        # What a careless upstream says about CORS must not reach the browser beside the Gateway's.
        self.send_header("Access-Control-Allow-Origin", "*")
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = answer

    def log_message(self, *_):
        pass


ThreadingHTTPServer(("127.0.0.1", int(PORT)), Echo).serve_forever()
