"""A WebSocket server that says everything back, and a client that knows what it should hear.

websocket.py server          listens, tells its port on standard error, echoes until it is ended; refuses `?refused`
websocket.py client URL      talks to it in every way there is; says "ok" if every answer was right
websocket.py refused URL     expects the handshake to be refused, and says the status
websocket.py hold URL        says "open" once connected, and how the connection ended
"""

import os
import sys
import threading

from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect
from websockets.sync.server import serve


SPEAKS = ["seawall-test"]


def echo(connection):
    for message in connection:
        if message == "close":
            connection.close(4000, "as you wish")
        elif message == "in pieces":
            connection.send(str(n) + " " for n in range(1_000))
        else:
            connection.send(message)


def choose(connection, request):
    return connection.respond(403, "not you\n") if request.path.endswith("?refused") else None


def server():
    with serve(echo, "127.0.0.1", 0, max_size=None, subprotocols=SPEAKS, process_request=choose) as listening:
        print(f"port {listening.socket.getsockname()[1]}", file=sys.stderr, flush=True)
        listening.serve_forever()


def client(url):
    with connect(url, max_size=None, subprotocols=SPEAKS) as connection:
        assert connection.subprotocol == "seawall-test"
        for message in ["word", "", "\N{SNOWMAN}", b"\x00\xff" * 5, "x" * 70_000, os.urandom(4 << 20)]:
            connection.send(message)
            assert connection.recv() == message
        connection.send(f"{n}," for n in range(1_000))
        assert connection.recv() == "".join(f"{n}," for n in range(1_000))
        connection.send("in pieces")
        pieces = list(connection.recv_streaming())
        assert len(pieces) > 1 and "".join(pieces) == "".join(f"{n} " for n in range(1_000))
        assert connection.ping().wait(60)
        speaker = threading.Thread(target=lambda: [connection.send(f"many {n}") for n in range(5_000)])
        speaker.start()
        for n in range(5_000):
            assert connection.recv() == f"many {n}"
        speaker.join()
        connection.send("close")
        try:
            connection.recv()
            raise AssertionError("it was to close")
        except ConnectionClosed as closed:
            assert (closed.rcvd.code, closed.rcvd.reason) == (4000, "as you wish")
    # Without compression, and several at once.
    several = [connect(url, compression=None, subprotocols=SPEAKS) for _ in range(20)]
    for n, connection in enumerate(several):
        connection.send(f"mine {n}")
    for n, connection in enumerate(several):
        assert connection.recv() == f"mine {n}"
        connection.close()
    print("ok")


def refused(url):
    try:
        connect(url, subprotocols=SPEAKS)
        print("connected")
    except InvalidStatus as refusal:
        print(refusal.response.status_code)


def hold(url):
    connection = connect(url, subprotocols=SPEAKS)
    connection.send("word")
    assert connection.recv() == "word"
    print("open", file=sys.stderr, flush=True)
    try:
        connection.recv()
    except ConnectionClosed as closed:
        print("ended in order" if closed.rcvd else "cut", file=sys.stderr, flush=True)


{"server": server, "client": client, "refused": refused, "hold": hold}[sys.argv[1]](*sys.argv[2:])
