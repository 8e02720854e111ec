"""Clients that are slow, half open, broken or malicious: each is refused or given up, and the others do not notice."""
import http.client
import json
import os
import random
import socket
import subprocess
import time

from service import PATIENCE, SMALL, Service, multipart, run


def raw(service, data, timeout=PATIENCE, end=False):
    """Sends bytes as they are; what comes back until the service closes or falls silent."""
    with socket.create_connection(("127.0.0.1", service.port), timeout) as connection:
        connection.sendall(data)
        if end:
            connection.shutdown(socket.SHUT_WR)
        got = b""
        try:
            while part := connection.recv(65536):
                got += part
        except (TimeoutError, ConnectionResetError):
            pass
        return got


def head(method="POST", path="/v1/videos", **headers):
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost"] + [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def test_broken_requests_are_refused():
    with Service() as service:
        body = json.dumps(SMALL).encode()
        cases = {
            b"\r\n\r\n": b"400",
            b"GET\r\n\r\n": b"400",
            b"GET / HTTP/9.9\r\n\r\n": b"400",
            b"BREW / HTTP/1.1\r\n\r\n": b"400",
            b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n": b"414",
            b"GET /" + b"a" * 8000 + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n": b"404",
            b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 9000 + b"\r\n\r\n": b"400",
            head(): b"411",
            head(Content_Length="x"): b"400",
            head(Content_Length="-1"): b"400",
            head(Content_Length="99999999999999999999"): b"400",
            head(Content_Length="1000000000"): b"413",
            head(Content_Length=str(len(body)), Transfer_Encoding="chunked") + body: b"400",
            head(Transfer_Encoding="gzip, chunked") + body: b"400",
            head(Transfer_Encoding="chunked", Content_Type="application/json") + b"zz\r\n": b"400",
            head(Content_Length="2", Content_Type="text/xml") + b"{}": b"415",
            head(Content_Length="2", Content_Encoding="gzip", Content_Type="application/json") + b"{}": b"415",
            head("DELETE", "/v1/videos/x", Content_Length="5") + b"hello": b"404",
            head("OPTIONS", "/v1/videos"): b"405",
        }
        for request, status in cases.items():
            reply = raw(service, request, end=True)
            assert reply.startswith(b"HTTP/1.1 " + status), (request[:80], reply[:200])
            text = reply.split(b"\r\n\r\n", 1)[1]
            assert not text or json.loads(text)["error"]["message"], (request[:80], text)
        # No range that can be read, and so not looked at.
        assert raw(service, head("GET", "/v1/videos", Range="bytes=" + "1-2," * 2000), end=True).startswith(b"HTTP/1.1 200")
        assert service.json("GET", "/v1/videos")["data"] == []


def test_a_request_hidden_in_another_is_not_served():
    with Service() as service:
        hidden = head("GET", "/metrics")
        for outer in (head("GET", "/health", Content_Length=str(len(hidden))), head("POST", "/nothing", Content_Length=str(len(hidden))),
                      head("DELETE", "/v1/videos/x", Content_Length=str(len(hidden)))):
            assert raw(service, outer + hidden, end=True).count(b"HTTP/1.1 ") == 1, outer
        both = raw(service, head("GET", "/health") + head("GET", "/metrics"), end=True)
        assert both.count(b"HTTP/1.1 200") == 2, "two in a row are two"


def test_chunked_bodies_have_a_limit():
    with Service() as service:
        chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
        got = b""
        with socket.create_connection(("127.0.0.1", service.port), PATIENCE) as connection:
            try:
                connection.sendall(head(Transfer_Encoding="chunked", Content_Type="application/json"))
                for _ in range(1000):  # 64 MiB
                    connection.sendall(chunk)
            except (BrokenPipeError, ConnectionResetError):
                pass
            try:
                got = connection.recv(1000)
            except ConnectionResetError:
                pass
        assert got == b"" or got.startswith(b"HTTP/1.1 4"), got
        assert service.metric("process_resident_memory_bytes") < 1.5e9


def test_slow_clients_are_given_up_and_keep_nobody_out():
    with Service() as service:
        slow = [socket.create_connection(("127.0.0.1", service.port), PATIENCE) for _ in range(100)]
        end = time.monotonic() + PATIENCE
        for i, connection in enumerate(slow):
            connection.sendall(b"POST /v1/videos HTTP/1.1\r\nHost: localhost\r\n" if i % 2 else b"")
        ended = set()
        while len(ended) < len(slow) and time.monotonic() < end:
            for i, connection in enumerate(slow):
                if i in ended:
                    continue
                try:
                    if i % 2:
                        connection.send(b"X")  # a byte now and then
                except (BrokenPipeError, ConnectionResetError):
                    ended.add(i)
                    continue
                connection.setblocking(False)
                try:
                    if connection.recv(1000) == b"":
                        ended.add(i)
                except BlockingIOError:
                    pass
                except ConnectionResetError:
                    ended.add(i)
                connection.setblocking(True)
            assert service.ask("GET", "/health")[0] == 200, "others are served meanwhile"
            time.sleep(0.5)
        for connection in slow:
            connection.close()
        assert len(ended) == len(slow), f"{len(slow) - len(ended)} of {len(slow)} are still there"


def health(service):
    """The status; None where the service, which gives one that it sends away half a second, had closed before it was asked."""
    try:
        return service.ask("GET", "/health")[0]
    except (OSError, http.client.HTTPException):
        return None


def test_too_many_connections_are_sent_away_and_come_back():
    with Service() as service:
        found = []
        while 503 not in found and len(found) < 20:  # those that this process leaves waiting for seconds are given up
            many = [socket.create_connection(("127.0.0.1", service.port), PATIENCE) for _ in range(300)]
            found.append(health(service))
            for connection in many:
                connection.close()
        assert 503 in found, found
        end = time.monotonic() + PATIENCE
        while health(service) != 200:
            assert time.monotonic() < end
            time.sleep(0.1)


def test_a_client_that_does_not_read_its_video_is_given_up_on_stop():
    with Service() as service:
        video = service.wait(service.create(size="512x512", num_frames=9)["id"])["id"]
        with socket.create_connection(("127.0.0.1", service.port), PATIENCE) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
            connection.sendall(head("GET", f"/v1/videos/{video}/content"))
            time.sleep(0.2)
            began = time.monotonic()
            code, _ = service.stop()
            # A client that may go on has half a minute and more.
            assert code == 130 and time.monotonic() - began < 25, time.monotonic() - began


def test_mutated_forms():
    """Forms with some of their bytes changed: an answer to each, and no job that nobody asked for."""
    chance = random.Random(7)
    headers, form = multipart({**SMALL, "prompt": ""}, [("input_reference", "a.png", b"\x89PNG\r\n\x1a\n")])
    text = json.dumps(SMALL).encode()
    with Service("--max-queue", "1000") as service:
        for i in range(400):
            data = bytearray(form if i % 2 else text)
            for _ in range(chance.randint(1, 6)):
                at = chance.randrange(len(data))
                if chance.random() < 0.3:
                    del data[at:at + chance.randint(1, 30)]
                else:
                    data[at:at + 1] = bytes([chance.randrange(256)])
            kind = headers if i % 2 else {"Content-Type": "application/json"}
            status, _, reply = service.ask("POST", "/v1/videos", bytes(data), kind)
            assert status in (200, 400, 404, 413), (status, data, reply)
            if status == 200:
                service.json("DELETE", f"/v1/videos/{json.loads(reply)['id']}")
        assert service.process.poll() is None
        assert service.json("GET", "/v1/videos")["data"] == []


def test_a_folder_that_cannot_be_written_fails_requests_not_the_service():
    if os.geteuid() == 0:
        # The administrator may write anywhere: a limit on the size of files does the same.
        service = Service()
        subprocess.run(["prlimit", "--pid", str(service.process.pid), "--fsize=0"], check=True)
        with service:
            status, _, text = service.ask("POST", "/v1/videos", SMALL)
            assert status == 500 and b"job.json" in text, (status, text)
            assert service.ask("GET", "/health")[0] == 200
            assert service.json("GET", "/v1/videos")["data"] == []


if __name__ == "__main__":
    run(globals())
