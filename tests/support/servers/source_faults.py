"""Faulty responses to a dataset's URL: cut connections, wrong ranges, content codings and garbage."""

from __future__ import annotations

import gzip
import zlib
from http.server import BaseHTTPRequestHandler

from finetune_trainer.errors import Reason

from tests.support.servers.loopback import Answer, ranged
from tests.support.servers.response_documents import DENIED, MISSING, OUTAGE
from tests.support.servers.source_responses import TRIES, any_error_response, good
from tests.support.servers.wire import (
    Case,
    Expected,
    World,
    chunked,
    drip,
    endless,
    head,
    message,
    rows,
    send,
)

TOO_LARGE, MALFORMED = Reason.DATASET_TOO_LARGE, Reason.MALFORMED_DATASET
V1, V2 = '"version-1"', '"version-2"'


def cut_with_ranges(world: World) -> Case:
    """Cut the file several times, each time after new bytes. The server resumes the requested version."""
    body = rows(world.random, least=4)
    count = world.random.randint(1, 6)
    cut = world.random.randint(1, len(body) // (count + 1))
    answers = [*(ranged(V1, body, cut_at=cut) for _ in range(count)), ranged(V1, body)]
    return Case(answers, Expected(body, requests=count + 1))


def cut_without_ranges(world: World) -> Case:
    """Without a strong ETag or Range, the file is fetched from the beginning."""
    body = rows(world.random, least=4)
    etag = world.random.choice([V1, 'W/"weak"', "unquoted", '""', ""])
    fields = [("ETag", etag.encode())] if etag else []
    part = body[: world.random.randrange(len(body))]
    announced = head(200, [("Content-Length", b"%d" % len(body)), *fields]) + part
    cut = send(announced, reset=world.random.random() < 0.3)
    answers = [cut, send(message(world.random, 200, body, *fields, framing="length"))]
    return Case(answers, Expected(body, requests=2))


def cut_chunks(world: World) -> Case:
    """A chunked body without its last chunk is incomplete, even if the file looks complete."""
    body = rows(world.random)
    whole = head(200, [("Transfer-Encoding", b"chunked")]) + chunked(world.random, body)
    cut = whole[: whole.rindex(b"0\r\n", 0, len(whole)) - world.random.choice([0, 1, 20])]
    return Case([send(cut), good(world, body)], Expected(body, requests=2))


def cut_always(world: World) -> Case:
    """Cut always at the same byte: three tries bring no new bytes."""
    body = rows(world.random, least=4)
    announced = head(200, [("Content-Length", b"%d" % len(body)), ("ETag", b'W/"weak"')])
    answers = [send(announced + body[: world.random.randrange(len(body))])]
    return Case(answers, Expected(OUTAGE))


def cut_then_refused(world: World) -> Case:
    body, response = rows(world.random, least=4), any_error_response(world)
    answers = [
        ranged(V1, body, cut_at=world.random.randrange(1, len(body))),
        send(message(world.random, response.status, response.body)),
    ]
    return Case(answers, Expected(response.reason, requests=None if response.passing else 2))


def cut_then_changed(world: World) -> Case:
    """At the second try the file has changed, and no byte of the first version may remain."""
    old, new = rows(world.random, least=4), rows(world.random)
    answers = [ranged(V1, old, cut_at=world.random.randrange(1, len(old))), ranged(V2, new)]
    return Case(answers, Expected(new, requests=2))


def cut_then_lied_to(world: World) -> Case:
    """A partial response that does not continue at the end of the file is never appended."""
    random = world.random
    old, new = rows(random, least=4), rows(random)
    cut = random.randrange(1, len(old) - 1)
    rest = old[cut:]
    field, etag = random.choice(
        [
            (f"bytes {cut + 1}-{len(old) - 1}/{len(old)}", V1),
            (f"bytes 0-{len(old) - 1}/{len(old)}", V1),
            (f"bytes {cut}-{len(old)}/{len(old) + 1}", V1),
            (f"bytes {cut}-{len(old) - 1}/{len(old)}", V2),
            (f"bytes {cut}-{len(old) - 1}/{len(old)}", f"W/{V1}"),
            (f"rows {cut}-{len(old) - 1}/{len(old)}", V1),
            (f"bytes */{len(old)}", V1),
            (f"bytes -{cut}-9/9", V1),
            ("nonsense", V1),
            ("", V1),
        ]
    )
    fields = [("ETag", etag.encode())] + ([("Content-Range", field.encode())] if field else [])
    answers = [ranged(V1, old, cut_at=cut), send(message(random, 206, rest, *fields)), ranged(V2, new)]
    return Case(answers, Expected(new, requests=3))


def cut_then_no_such_range(world: World) -> Case:
    old, new = rows(world.random, least=4), rows(world.random)
    status = world.random.choice([412, 416])
    answers = [
        ranged(V1, old, cut_at=world.random.randrange(1, len(old))),
        send(message(world.random, status, b"", ("Content-Range", b"bytes */1"))),
        ranged(V2, new),
    ]
    return Case(answers, Expected(new, requests=3))


def part_too_long(world: World) -> Case:
    """A partial response has more bytes than the file."""
    body = rows(world.random, least=4)
    cut = world.random.randrange(1, len(body))
    fields = [("ETag", V1.encode()), ("Content-Range", f"bytes {cut}-{len(body) - 1}/{len(body)}".encode())]
    long = send(message(world.random, 206, body[cut:] + b"more", *fields))
    return Case([ranged(V1, body, cut_at=cut), long, ranged(V1, body)], Expected(body, requests=3))


def part_for_a_plain_request(world: World) -> Case:
    """A partial response to a plain request is never accepted as the file."""
    body = rows(world.random)
    field = world.random.choice([f"bytes 0-{len(body) - 1}/{len(body)}", "bytes 5-9/10", "nonsense", ""])
    part = send(message(world.random, 206, body, *([("Content-Range", field.encode())] if field else [])))
    if world.random.random() < 0.5:
        return Case([part, good(world, body)], Expected(body, requests=2))
    return Case([part], Expected(OUTAGE, requests=TRIES))


def second_process(world: World) -> Case:
    """An earlier process left a part. A newly signed URL resumes it unless the file has changed."""
    old, new = rows(world.random, least=4), rows(world.random)
    left_by = [
        ranged(V1, old, cut_at=world.random.randrange(1, len(old))),
        send(message(world.random, 404)),
    ]
    if world.random.random() < 0.5:
        return Case([ranged(V1, old)], Expected(old, requests=1), left_by=left_by)
    return Case([ranged(V2, new)], Expected(new, requests=1), left_by=left_by)


_GZIP = (b"gzip", b"x-gzip", b"GZIP", b"identity, gzip", b"aws-chunked,gzip")


def _coded(world: World, packed: bytes) -> Answer:
    return send(message(world.random, 200, packed, ("Content-Encoding", world.random.choice(_GZIP))))


def gzip_coding(world: World) -> Case:
    """Gzip as a content coding is removed, with one member or several."""
    body = rows(world.random) * world.random.choice([0, 1, 1, 1])
    half = len(body) // 2
    members = gzip.compress(body[:half], mtime=0) + gzip.compress(body[half:], mtime=0)
    packed = world.random.choice(
        [gzip.compress(body, mtime=0), members, gzip.compress(body, mtime=0) + bytes(8)]
    )
    return Case([_coded(world, packed)], Expected(body, requests=1))


def gzip_label_alone(world: World) -> Case:
    """A file that is only labeled gzip stays unchanged, and so does a gzip file without the label."""
    body = world.random.choice([rows(world.random), b"", b"\x1f"])
    if world.random.random() < 0.5:
        return Case([_coded(world, body)], Expected(body, requests=1))
    packed = gzip.compress(body, mtime=0)
    return Case([good(world, packed)], Expected(packed, requests=1))


def gzip_coding_resumed(world: World) -> Case:
    body = rows(world.random, least=4)
    packed = gzip.compress(body, mtime=0)
    fields = {"Content-Encoding": "gzip"}
    cut = ranged(V1, packed, cut_at=world.random.randrange(1, len(packed)), headers=fields)
    return Case([cut, ranged(V1, packed, headers=fields)], Expected(body, requests=2))


def gzip_coding_broken(world: World) -> Case:
    """The response is complete, but its gzip is cut, damaged, or followed by other bytes."""
    packed = gzip.compress(rows(world.random), mtime=0)
    kind = world.random.choice(["cut", "damaged", "followed"])
    if kind == "cut":
        broken = packed[: world.random.randrange(2, len(packed))]
    elif kind == "damaged":
        place = world.random.choice([10, len(packed) - 8])  # the type of the first block, and the checksum
        broken = (
            packed[:place] + bytes(byte ^ 0x56 for byte in packed[place : place + 4]) + packed[place + 4 :]
        )
    else:
        broken = packed + b"\n<!-- cached -->"
    return Case([_coded(world, broken)], Expected(MALFORMED, requests=1))


def other_coding(world: World) -> Case:
    """An unrequested content coding that cannot be decoded."""
    coding = world.random.choice(
        [b"br", b"zstd", b"deflate", b"compress", b"gzip, gzip", b"gzip, br", b"x-unknown"]
    )
    packed = zlib.compress(rows(world.random))
    return Case(
        [send(message(world.random, 200, packed, ("Content-Encoding", coding)))], Expected(OUTAGE, requests=1)
    )


def gzip_bomb(world: World) -> Case:
    packed = gzip.compress(bytes(world.random.randrange(20_001, 300_000)), mtime=0)
    return Case([_coded(world, packed)], Expected(TOO_LARGE, requests=1), limit=20_000)


def oversized_by_header(world: World) -> Case:
    length = world.random.choice([20_001, 10**9, 10**15, 10**18, 10**19])
    data = head(200, [("Content-Length", b"%d" % length)]) + rows(world.random)
    return Case([send(data)], Expected(TOO_LARGE, requests=1), limit=20_000)


def oversized_by_stream(world: World) -> Case:
    if world.random.random() < 0.5:
        answer = endless(head(200, []), b"x")
    else:
        body = b"x" * world.random.randrange(20_001, 60_000)
        answer = send(message(world.random, 200, body, framing=world.random.choice(["chunked", "end"])))
    return Case([answer], Expected(TOO_LARGE, requests=1), limit=20_000)


def oversized_by_range(world: World) -> Case:
    """The file grew without a new ETag, or only the part's total shows its size."""
    body = rows(world.random, least=4)
    cut = world.random.randrange(1, len(body))
    first = head(200, [("ETag", V1.encode()), ("Transfer-Encoding", b"chunked")])
    part = first + b"%x\r\n%s\r\n" % (cut, body[:cut])
    fields = [("ETag", V1.encode()), ("Content-Range", f"bytes {cut}-49999/50000".encode())]
    rest = send(message(world.random, 206, body[cut:], *fields))
    return Case([send(part), rest], Expected(TOO_LARGE, requests=2), limit=20_000)


def largest_file(world: World) -> Case:
    """A file of exactly the largest size is accepted."""
    body = rows(world.random)
    return Case([good(world, body)], Expected(body, requests=1), limit=len(body))


def _garbage(world: World) -> bytes:
    """Return bytes that are no HTTP response, or only the beginning of one."""
    random = world.random
    body = rows(random)
    length = ("Content-Length", b"%d" % len(body))
    return random.choice(
        [
            b"",
            b"\r\n\r\n",
            b"SSH-2.0-OpenSSH_9.6\r\n",
            b"\x15\x03\x03\x00\x02\x02\x28",
            b"ICY 200 OK\r\n\r\n" + body,
            body,
            random.randbytes(random.randrange(1, 2000)),
            b"HTTP/1.1 20x OK\r\n\r\n" + body,
            b"HTTP/1.1 \r\n\r\n",
            b"HTTP/1.1 99999 OK\r\n\r\n",
            b"HTTP/1.1 -200 OK\r\n\r\n",
            b"HTTP/1.1 099 Odd\r\n\r\n",
            b"HTTP/9.9.9 200 OK\r\n\r\n",
            b"HTTP/1.1 200 OK",
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n",
            b"HTTP/1.1 200 OK\r\nno colon here\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nBad\x00Name: x\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nX: a\x00b\r\n\r\n",
            b"HTTP/1.1 200 OK\r\n: empty\r\n\r\n",
            head(200, [length, ("Content-Length", b"%d" % (len(body) + 1))]) + body,
            head(200, [("Content-Length", random.choice([b"-5", b"abc", b"1e3", b"0x10", b"5, 6", b"\xb2"]))])
            + body,
            head(200, [("Transfer-Encoding", random.choice([b"gzip", b"x", b"chunked, chunked"]))]) + body,
            head(200, [("Transfer-Encoding", b"chunked")])
            + random.choice([b"zz\r\n", b"-1\r\nx", b"5\r\nabcdefg\r\n", b"\r\n"]),
            head(200, [("Transfer-Encoding", b"chunked")]) + b"f" * 40 + b"\r\n" + body,
            head(200, [("X-Long", b"x" * 300_000), length]) + body,
            head(200, [*((f"X-{n}", b"y" * 1000) for n in range(300)), length]) + body,
            b"HTTP/1.1 200 " + b"O" * 300_000 + b"\r\n\r\n" + body,
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n" + body,
            head(100, []) * 3,
        ]
    )


def garbage(world: World) -> Case:
    return Case([send(_garbage(world))], Expected(OUTAGE))


def garbage_that_passes(world: World) -> Case:
    body = rows(world.random)
    faults = [send(_garbage(world)) for _ in range(world.random.randint(1, TRIES - 1))]
    return Case([*faults, good(world, body)], Expected(body))


def _reset(world: World) -> Answer:
    """Send RST at the start, in the header, after it, or in the body."""
    body = rows(world.random, least=4)
    header = head(200, [("Content-Length", b"%d" % len(body)), ("X-Padding", b"x" * 100)])
    data = world.random.choice([b"", header[:60], header, header + body[: len(body) // 2]])
    return send(data, reset=True)


def reset(world: World) -> Case:
    return Case([_reset(world)], Expected(OUTAGE))


def reset_that_passes(world: World) -> Case:
    body = rows(world.random)
    return Case([_reset(world), good(world, body)], Expected(body, requests=2))


def every_fault_in_turn(world: World) -> Case:
    """Every kind of failed try counts, and an error response after two of them ends the download."""
    faults = [send(b"", reset=True), send(b"SSH-2.0-x\r\n"), send(message(world.random, 502)), send(b"")]
    world.random.shuffle(faults)
    if world.random.random() < 0.5:
        return Case([*faults[:TRIES], good(world, b"never asked for")], Expected(OUTAGE, requests=TRIES))
    status, reason = world.random.choice([(403, DENIED), (404, MISSING)])
    return Case([*faults[:2], send(message(world.random, status))], Expected(reason, requests=TRIES))


def slow_header(world: World) -> Case:
    """Occasional bytes prevent a read timeout, so the deadline ends the download."""
    return Case(
        [drip(head(200, [("X", b"y" * world.random.randrange(200, 400))]), 0.1)],
        Expected(OUTAGE, requests=1),
        seconds=1,
    )


def slow_body(world: World) -> Case:
    body = rows(world.random, least=4)
    first = message(world.random, 200, body, framing=world.random.choice(["length", "chunked", "end"]))
    place = first.index(b"\r\n\r\n") + 4

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(first[:place])
        drip(first[place:], 0.1)(handler)

    return Case([answer], Expected(OUTAGE, requests=1), seconds=1)


def slow_file_in_time(world: World) -> Case:
    body = rows(world.random)[:20]
    data = message(world.random, 200, body, framing="length")
    place = data.index(b"\r\n\r\n")

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(data[:place])
        drip(data[place:], 0.01)(handler)

    return Case([answer], Expected(body, requests=1))
