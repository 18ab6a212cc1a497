"""A WebSocket client over HTTP/2 (RFC 8441): `websockets` makes and reads the messages, `h2` carries them on a stream.

websocket_h2.py client ADDRESS PATH     talks to an echo in every way there is, several at once; says "ok" if all was right
websocket_h2.py refused ADDRESS PATH    expects the handshake to be refused, and says the status and how long its body is
websocket_h2.py reset ADDRESS PATH      says a word, hears it back, and resets its stream; then talks on another
websocket_h2.py hold ADDRESS PATH       says "open" once connected, and how it ended
"""

import os
import socket
import sys

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings
from websockets.frames import Opcode
from websockets.protocol import CLIENT, OPEN, Protocol

PATIENCE = 60


class Wire:
    """An HTTP/2 connection to a server that offers RFC 8441."""

    def __init__(self, address):
        host, port = address.rsplit(":", 1)
        self.socket = socket.create_connection((host, int(port)), timeout=PATIENCE)
        self.http = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
        self.http.initiate_connection()
        self.chats, self.is_gone = {}, False
        self.turn(lambda: self.http.remote_settings.enable_connect_protocol == 1)

    def flush(self):
        data = self.http.data_to_send()
        if data:
            self.socket.sendall(data)

    def hear(self):
        """What comes next; nothing once the connection is gone."""
        try:
            return self.socket.recv(65536)
        except OSError:
            return b""

    def turn(self, until):
        """Goes on until it is so."""
        self.flush()
        while not until():
            data = self.hear()
            if not data:
                self.is_gone = True
                return
            for event in self.http.receive_data(data):
                chat = self.chats.get(getattr(event, "stream_id", None))
                if chat:
                    chat.hear(event)
                elif isinstance(event, h2.events.ConnectionTerminated):
                    assert event.error_code == 0, event
            for chat in self.chats.values():
                chat.push()
            self.flush()


class Chat:
    """A stream that is a WebSocket."""

    def __init__(self, wire, path, more=()):
        self.wire, self.stream = wire, wire.http.get_next_available_stream_id()
        wire.chats[self.stream] = self
        self.status, self.headers, self.body, self.ended, self.reset = None, {}, 0, False, None
        self.messages, self.pieces, self.out = [], [], b""
        self.protocol = Protocol(CLIENT, state=OPEN, max_size=None)
        wire.http.send_headers(self.stream, [
            (":method", "CONNECT"), (":protocol", "websocket"), (":scheme", "http"), (":authority", "h.example"),
            (":path", path), ("sec-websocket-version", "13"), ("sec-websocket-protocol", "seawall-test"), *more,
        ])
        wire.turn(lambda: self.status or self.reset or wire.is_gone)

    def hear(self, event):
        if isinstance(event, h2.events.ResponseReceived):
            self.headers = dict(event.headers)
            self.status = self.headers[":status"]
        elif isinstance(event, h2.events.DataReceived):
            self.wire.http.acknowledge_received_data(event.flow_controlled_length, self.stream)
            self.body += len(event.data)
            if self.status == "200":
                self.protocol.receive_data(event.data)
        elif isinstance(event, h2.events.StreamEnded):
            self.ended = True
            if self.status == "200":
                self.protocol.receive_eof()
        elif isinstance(event, h2.events.StreamReset):
            self.reset = event.error_code
        for frame in self.protocol.events_received():
            if frame.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
                self.pieces.append(frame)
                if frame.fin:
                    data = b"".join(bytes(piece.data) for piece in self.pieces)
                    self.messages.append(data.decode() if self.pieces[0].opcode is Opcode.TEXT else data)
                    self.pieces = []

    def push(self):
        """What the protocol wants sent, as far as there is room."""
        for data in self.protocol.data_to_send():
            # Of a socket it would close one half; a stream has its own end.
            self.out += data
        while self.out and not self.ended and self.reset is None:
            room = min(self.wire.http.local_flow_control_window(self.stream), self.wire.http.max_outbound_frame_size)
            if room <= 0:
                break
            self.wire.http.send_data(self.stream, self.out[:room])
            self.out = self.out[room:]

    def send(self, message):
        if isinstance(message, str):
            self.protocol.send_text(message.encode())
        else:
            self.protocol.send_binary(message)
        self.push()

    def recv(self):
        self.wire.turn(lambda: self.messages or self.ended or self.reset is not None)
        return self.messages.pop(0)

    def wait_ended(self):
        self.wire.turn(lambda: self.ended or self.reset is not None)


def client(address, path):
    wire = Wire(address)
    chat = Chat(wire, path)
    assert (chat.status, chat.headers["sec-websocket-protocol"]) == ("200", "seawall-test"), chat.headers
    assert not {"sec-websocket-accept", "upgrade", "connection"} & chat.headers.keys(), chat.headers
    for message in ["word", "", "\N{SNOWMAN}", b"\x00\xff" * 5, "x" * 70_000, os.urandom(4 << 20)]:
        chat.send(message)
        assert chat.recv() == message
    chat.send("in pieces")
    assert chat.recv() == "".join(f"{n} " for n in range(1_000))
    # Both at full speed, and neither waits for the other.
    for n in range(5_000):
        chat.send(f"many {n}")
    for n in range(5_000):
        assert chat.recv() == f"many {n}"
    # Several on the same connection.
    several = [Chat(wire, path) for _ in range(20)]
    for n, other in enumerate(several):
        other.send(f"mine {n}")
    for n, other in enumerate(several):
        assert other.recv() == f"mine {n}"
    chat.send("close")
    chat.wait_ended()
    closed = chat.protocol.close_rcvd
    assert (closed.code, closed.reason, chat.ended) == (4000, "as you wish", True), closed
    for other in several:
        other.protocol.send_close(1000)
        other.push()
        other.wait_ended()
        assert (other.protocol.close_rcvd.code, other.ended) == (1000, True)
    for other in [chat, *several]:
        wire.http.end_stream(other.stream)
    wire.flush()
    print("ok")


def refused(address, path):
    chat = Chat(Wire(address), path)
    chat.wait_ended()
    print(chat.status, chat.body)


def reset(address, path):
    wire = Wire(address)
    chat, other = Chat(wire, path), Chat(wire, path)
    chat.send("word")
    assert chat.recv() == "word"
    wire.http.reset_stream(chat.stream, h2.errors.ErrorCodes.CANCEL)
    other.send("another")
    assert other.recv() == "another"
    print("ok")


def hold(address, path):
    chat = Chat(Wire(address), path)
    chat.send("word")
    assert chat.recv() == "word"
    print("open", file=sys.stderr, flush=True)
    try:
        chat.wire.turn(lambda: chat.ended or chat.reset is not None)
    except (OSError, h2.exceptions.ProtocolError):
        # `h2` hears no more after a farewell, though what is open may go on.
        while chat.wire.hear():
            pass
    print("ended in order" if chat.ended else "cut", file=sys.stderr, flush=True)


{"client": client, "refused": refused, "reset": reset, "hold": hold}[sys.argv[1]](*sys.argv[2:])
