"""Requests over HTTP: refusals with the right status, and clients that misbehave."""

from __future__ import annotations

import json
import socket
import time

import pytest

ITEM = {"prompt": "a", "response": " b"}


def raw(server, sent: bytes, *, half_closed: bool = False) -> bytes:
    """Send bytes, and read until the server closes."""
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=10) as connection:
        connection.sendall(sent)
        if half_closed:
            connection.shutdown(socket.SHUT_WR)
        answer = b""
        while part := connection.recv(65536):
            answer += part
    return answer


def post(body: bytes, *headers: bytes, length: bytes | None = None) -> bytes:
    length = b"Content-Length: " + (length or str(len(body)).encode())
    return b"\r\n".join([b"POST /score HTTP/1.1", b"Host: x", length, *headers, b"", body])


@pytest.mark.parametrize(
    ("method", "path", "status", "header"),
    [
        ("GET", "/", 404, None),
        ("POST", "/scores", 404, None),
        ("GET", "/score", 405, ("Allow", "POST")),
        ("PUT", "/score", 405, ("Allow", "POST")),
        ("OPTIONS", "/score", 405, ("Allow", "POST")),
        ("POST", "/health", 405, ("Allow", "GET")),
        ("BREW", "/score", 501, None),
    ],
)
def test_wrong_addresses_and_methods(score_server, ask, method, path, status, header):
    found, answer, headers = ask(score_server(), method, path)
    assert found == status
    assert answer["error"]["message"]
    assert header is None or headers[header[0]] == header[1]


def test_head_has_no_body(score_server):
    assert raw(score_server(), b"HEAD /score HTTP/1.1\r\n\r\n").endswith(b"\r\n\r\n")


def test_a_token(score_server, ask):
    server = score_server(token="secret")
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret"}, {"Authorization": "B\xe4r"}):
        status, answer, said = ask(server, body=ITEM, **headers)
        assert (status, said["WWW-Authenticate"]) == (401, "Bearer")
        assert "secret" not in json.dumps(answer)
    assert ask(server, "GET", "/schema")[0] == 401
    assert ask(server, "GET", "/health")[0] == 200
    assert ask(server, body=ITEM, Authorization="Bearer secret")[1]["score"] == 2.0


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (post(b"{"), 400),
        (b"POST /score HTTP/1.1\r\n\r\n", 411),
        (b"POST /score HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 411),
        (post(b'{"prompt": "a", "response": "b"}', b"Transfer-Encoding: chunked"), 411),
        (post(b"", length=b"-1"), 400),
        (post(b"", length=b"many"), 400),
        (post(b'{"prompt": "a", "response": "b"}', b"Content-Length: 3"), 400),
        (post(b"x" * 300), 413),
        (post(b"", length=b"9" * 5000), 413),
        (b"\x16\x03\x01 not http at all\r\n\r\n", 400),
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n", 414),
    ],
)
def test_garbage_is_answered_in_json(score_server, ask, request_bytes, status):
    server = score_server(max_body=200, timeout=2.0)
    head, _, body = raw(server, request_bytes).partition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} ".encode())
    assert json.loads(body)["error"]["message"]
    assert ask(server, body=ITEM)[0] == 200


def test_a_body_that_ends_early(score_server):
    answer = raw(score_server(), post(b"{}", length=b"10"), half_closed=True)
    assert b"the body ended after 2 of 10 bytes" in answer


def test_a_large_body_is_refused_before_it_is_read_and_the_client_gets_to_know(score_server, ask):
    status, answer, _ = ask(score_server(max_body=100), body=b"x" * 20_000_000)
    assert (status, answer["error"]["message"]) == (413, "the request has 20000000 bytes; at most 100 are taken")


@pytest.mark.parametrize("in_body", [True, False])
def test_a_slow_client_does_not_hold_a_thread(score_server, in_body):
    """A byte now and then does not help it: the whole request has one deadline."""
    server = score_server(timeout=0.5)
    request = post(json.dumps(ITEM).encode())
    start = request.index(b"{") if in_body else 10
    begin = time.monotonic()
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=5) as connection:
        connection.sendall(request[:start])
        for byte in request[start : start + 15]:
            time.sleep(0.02)
            connection.sendall(bytes([byte]))
        answer = connection.recv(65536)
    assert 0.4 < time.monotonic() - begin < 1.2
    assert answer.startswith(b"HTTP/1.1 408 ") if in_body else answer == b""


def test_nothing_that_is_asked_is_written_anywhere(score_server, ask, capfd):
    server = score_server()
    ask(server, body={"prompt": "my secret", "response": " b"})
    ask(server, "GET", "/my-secret")
    raw(server, b"my secret\r\n\r\n")
    assert capfd.readouterr() == ("", "")


def test_a_client_that_goes_away_does_no_harm(score_server, ask, length_scorer, capfd):
    server = score_server()
    length_scorer.go.clear()
    with socket.create_connection(("127.0.0.1", server.server_port)) as connection:
        connection.sendall(post(json.dumps(ITEM).encode()))
        assert length_scorer.begun.wait(5)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    length_scorer.go.set()
    assert ask(server, body=ITEM)[0] == 200
    assert capfd.readouterr().err == ""
