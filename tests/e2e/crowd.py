"""Keeps calls under way at the Gateway, for scripts/e2e.

    crowd.py PORT COUNT

Sends the heads of so many calls, whose bodies never come, prints a line, and holds them until it is
killed.
"""

import socket
import sys
import time

port, count = map(int, sys.argv[1:])
HEAD = b"POST /api/main/agent/tasks HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\n"
sockets = [socket.create_connection(("127.0.0.1", port)) for _ in range(count)]
for each in sockets:
    each.sendall(HEAD)
# All heads have been read once the last one sent is counted; nginx takes no more than a moment.
time.sleep(1)
print("ready", flush=True)
time.sleep(60)
