"""A gRPC server and clients of it, without generated code: messages are bytes.

    server                      prints `port N`; has the health service, and `Feel "SERVICE STATUS"` sets what it says
    client ADDRESS              every kind of call; prints `ok`
    code ADDRESS METHOD [S]     one call with a deadline of S seconds; prints its status and its message
    load ADDRESS N              N calls at once, many times; prints how many came back right
    watch ADDRESS N             asks once, says no more and does not end; prints how many of N answers came
"""

import sys
import threading
from concurrent import futures

import grpc

SERVICE = "seawall.Echo"


def serve():
    # Clients do without.
    from grpc_health.v1 import health, health_pb2, health_pb2_grpc

    how = health.HealthServicer()

    def unary(request, context):
        told = dict(context.invocation_metadata())
        context.set_trailing_metadata((("x-len", str(len(request))),))
        if request == b"metadata":
            return ";".join(f"{k}={v}" for k, v in sorted(told.items()) if k.startswith(("x-", "via"))).encode()
        if request == b"patience":
            return str(context.time_remaining()).encode()
        return request

    def fail(request, context):
        code, _, message = request.decode().partition(" ")
        context.abort(grpc.StatusCode[code], message)

    def hang(request, context):
        threading.Event().wait(30)
        return b"late"

    def feel(request, context):
        service, status = request.decode().split(" ")
        how.set(service, health_pb2.HealthCheckResponse.ServingStatus.Value(status))
        return b""

    def numbers(request, context):
        for n in range(int(request)):
            yield str(n).encode()

    def break_off(request, context):
        yield b"first"
        context.abort(grpc.StatusCode.DATA_LOSS, "broken off")

    def add(requests, context):
        return str(sum(int(request) for request in requests)).encode()

    def talk(requests, context):
        for request in requests:
            yield b"you said " + request

    def watch(requests, context):
        for n in range(int(next(requests))):
            threading.Event().wait(0.25)
            yield b"x"

    handlers = {
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
        "Fail": grpc.unary_unary_rpc_method_handler(fail),
        "Feel": grpc.unary_unary_rpc_method_handler(feel),
        "Hang": grpc.unary_unary_rpc_method_handler(hang),
        "Numbers": grpc.unary_stream_rpc_method_handler(numbers),
        "BreakOff": grpc.unary_stream_rpc_method_handler(break_off),
        "Add": grpc.stream_unary_rpc_method_handler(add),
        "Talk": grpc.stream_stream_rpc_method_handler(talk),
        "Watch": grpc.stream_stream_rpc_method_handler(watch),
    }
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=64))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    health_pb2_grpc.add_HealthServicer_to_server(how, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(f"port {port}", file=sys.stderr, flush=True)
    server.wait_for_termination()


def channel(address):
    return grpc.insecure_channel(address, options=(("grpc.enable_retries", 0),))


def expect(name, got, wanted):
    if got != wanted:
        sys.exit(f"{name}: {got!r} in place of {wanted!r}")


def client(address):
    with channel(address) as way:
        unary = way.unary_unary(f"/{SERVICE}/Unary")
        answer, call = unary.with_call(b"hello", timeout=10)
        expect("unary", answer, b"hello")
        expect("trailers", dict(call.trailing_metadata())["x-len"], "5")
        big = b"x" * (3 << 20)
        expect("big", unary(big, timeout=20), big)
        expect("empty", unary(b"", timeout=10), b"")
        told = unary(b"metadata", metadata=(("x-tenant", "acme"),), timeout=10)
        expect("metadata", b"x-tenant=acme" in told and b"via=" in told, True)
        left = float(unary(b"patience", timeout=10))
        # The library rounds up what it is told.
        if not 0 < left < 11:
            sys.exit(f"patience: {left} s of 10")
        numbers = way.unary_stream(f"/{SERVICE}/Numbers")
        expect("numbers", [int(n) for n in numbers(b"500", timeout=10)], list(range(500)))
        add = way.stream_unary(f"/{SERVICE}/Add")
        expect("add", add((str(n).encode() for n in range(200)), timeout=10), b"19900")

        # A conversation: each side waits for the other.
        said, heard = threading.Semaphore(1), []

        def words():
            for n in range(50):
                said.acquire()
                yield f"word {n}".encode()

        for answer in way.stream_stream(f"/{SERVICE}/Talk")(words(), timeout=20):
            heard.append(answer)
            said.release()
        expect("talk", heard, [f"you said word {n}".encode() for n in range(50)])

        broken = way.unary_stream(f"/{SERVICE}/BreakOff")(b"", timeout=10)
        expect("before it breaks", next(broken), b"first")
        try:
            next(broken)
            sys.exit("a broken answer was taken for a whole one")
        except grpc.RpcError as error:
            expect("broken", (error.code(), error.details()), (grpc.StatusCode.DATA_LOSS, "broken off"))
        try:
            way.unary_unary(f"/{SERVICE}/Fail")(b"NOT_FOUND no such thing", timeout=10)
            sys.exit("a failure was taken for an answer")
        except grpc.RpcError as error:
            expect("fail", (error.code(), error.details()), (grpc.StatusCode.NOT_FOUND, "no such thing"))
    print("ok")


def code(address, method, seconds="10"):
    name, _, argument = method.partition(" ")
    with channel(address) as way:
        try:
            way.unary_unary(f"/{SERVICE}/{name}")(argument.encode(), timeout=float(seconds))
            print("OK")
        except grpc.RpcError as error:
            print(error.code().name, error.details())


def load(address, count):
    right, lock = [0], threading.Lock()
    with channel(address) as way:
        unary = way.unary_unary(f"/{SERVICE}/Unary")

        def ask(n):
            text = f"message {n}".encode()
            if unary(text, timeout=20) == text:
                with lock:
                    right[0] += 1

        with futures.ThreadPoolExecutor(max_workers=32) as pool:
            list(pool.map(ask, range(int(count))))
    print(right[0])


def watch(address, count):
    done, came = threading.Event(), 0

    def words():
        yield count.encode()
        done.wait()

    with channel(address) as way:
        try:
            for _ in way.stream_stream(f"/{SERVICE}/Watch")(words(), timeout=60):
                came += 1
        finally:
            done.set()
    print(came)


{"server": serve, "client": client, "code": code, "load": load, "watch": watch}[sys.argv[1]](*sys.argv[2:])
