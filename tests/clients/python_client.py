"""PyPI `toxiproxy-python` against the server on 127.0.0.1:8474: everything it offers, with real connections."""

import socket
import threading
import time

from toxiproxy import Toxiproxy
from toxiproxy.exceptions import InvalidToxic, NotFound, ProxyExists

passed = 0


def check(what, holds):
    global passed
    if not holds:
        raise SystemExit(f"toxiproxy-python: {what}: does not hold")
    passed += 1


def refuses(what, error, call):
    try:
        call()
    except error:
        check(what, True)
    else:
        check(what, False)


echo = socket.create_server(("127.0.0.1", 0))


def serve():
    while True:
        client, _ = echo.accept()
        threading.Thread(target=answer, args=(client,), daemon=True).start()


def answer(client):
    with client:
        while data := client.recv(1024):
            client.sendall(data)


threading.Thread(target=serve, daemon=True).start()
upstream = "127.0.0.1:%d" % echo.getsockname()[1]

server = Toxiproxy()
server.update_api_consumer("127.0.0.1", 8474)
check("it runs", server.running())
check("the version", server.version() == b'{"version": "2.12.0"}\n')
server.destroy_all()
check("nothing is left", server.proxies() == {})

proxy = server.create(upstream=upstream, name="echo", enabled=True, listen="127.0.0.1:0")
host, port = proxy.listen.split(":")
check("the port is told", int(port) > 0 and proxy.enabled and proxy.upstream == upstream)
check("it is found", server.get_proxy("echo").listen == proxy.listen)
check("no other is", server.get_proxy("nope") is None)
refuses("a name twice", ProxyExists, lambda: server.create(upstream=upstream, name="echo"))


def ask():
    with socket.create_connection((host, int(port)), timeout=60) as client:
        begin = time.monotonic()
        client.sendall(b"hello")
        check("the answer", client.recv(1024) == b"hello")
        return time.monotonic() - begin


ask()
proxy.add_toxic(type="latency", attributes={"latency": 300, "jitter": 10})
toxics = proxy.toxics()
check("the toxic's name", list(toxics) == ["latency_downstream"])
toxic = proxy.get_toxic("latency_downstream")
check("the toxic", toxic.type == "latency" and toxic.stream == "downstream" and toxic.toxicity == 1.0)
check("its attributes", toxic.attributes == {"latency": 300, "jitter": 10})
check("it delays", ask() >= 0.29)
refuses("a toxic twice", ProxyExists, lambda: proxy.add_toxic(type="latency", attributes={"latency": 1}))
refuses("a stream that is none", InvalidToxic, lambda: proxy.add_toxic(type="latency", stream="sideways"))
refuses("a type that is none", InvalidToxic, lambda: proxy.add_toxic(type="nope"))
proxy.destroy_toxic("latency_downstream")
check("it is gone", proxy.get_toxic("latency_downstream") is None)
refuses("a toxic that is gone", NotFound, lambda: proxy.destroy_toxic("latency_downstream"))

with proxy.down():
    try:
        socket.create_connection((host, int(port)), timeout=60).close()
        check("down refuses", False)
    except ConnectionRefusedError:
        check("down refuses", True)
ask()

proxy.disable()
proxy.add_toxic(type="slicer", stream="upstream", attributes={"average_size": 1, "delay": 10})
check("reset", server.reset())
check("reset lifts and enables", proxy.toxics() == {} and server.get_proxy("echo").enabled)
ask()

more = [{"name": "echo", "upstream": upstream, "listen": proxy.listen}, {"name": "two", "upstream": upstream, "listen": "127.0.0.1:0"}]
check("populate creates what is missing", [made.name for made in server.populate(more)] == ["two"])
check("both are there", sorted(server.proxies()) == ["echo", "two"])
check("destroy", server.destroy(server.get_proxy("two")) and server.get_proxy("two") is None)
server.destroy_all()
print(f"toxiproxy-python: {passed} checks hold")
