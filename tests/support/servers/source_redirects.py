"""Redirects of a dataset's URL: every form and every wrong target, in a private network and the public Internet."""

from __future__ import annotations

from urllib.parse import urljoin

from finetune_trainer.errors import Reason

from tests.support.servers.loopback import Answer
from tests.support.servers.response_documents import DENIED, MARK, OUTAGE
from tests.support.servers.source_responses import PAGES, TRIES, any_error_response, good, login_page
from tests.support.servers.wire import Case, Expected, World, chunked, head, message, persistent, rows, send

FORBIDDEN = Reason.DATASET_ADDRESS_FORBIDDEN
_MOVED = (301, 302, 303, 307, 308)


def redirect_to_sign_in(world: World) -> Case:
    answers = [
        send(message(world.random, 302, b"", ("Location", f"/login?next=%2F{MARK}".encode()))),
        send(message(world.random, 200, login_page(world))),
    ]
    return Case(answers, Expected(DENIED, requests=2))


def moved(world: World, location: bytes) -> Answer:
    """Return a redirect with any body."""
    body = world.random.choice([*PAGES, b"x" * 100_000])
    return send(message(world.random, world.random.choice(_MOVED), body, ("Location", location)))


def redirects(world: World) -> Case:
    """One to five redirects in every form of reference. RFC 3986 defines the last target."""
    target = world.target()
    location = world.inside + target
    answers = []
    for _ in range(world.random.randint(1, 5)):
        where = world.target()
        reference = world.random.choice(
            [
                world.inside + where,
                world.inside.upper() + where,
                where,
                where.removeprefix("/"),
                "../" + where.removeprefix("/"),
                "?" + where.partition("?")[2] + "x=1",
                "//" + world.inside.partition("//")[2] + where,
                where + "#fragment",
            ]
        )
        location = urljoin(location, reference).partition("#")[0]
        answers.append(moved(world, b" " * world.random.randrange(2) + reference.encode()))
    body = rows(world.random)
    asked = location.partition("//")[2].partition("/")[2]
    expected = Expected(body, requests=len(answers) + 1, last_target="/" + asked)
    return Case([*answers, good(world, body)], expected, target=target)


def redirect_on_a_kept_connection(world: World) -> Case:
    body = rows(world.random)
    where = world.target()
    first = persistent(head(302, [("Location", where.encode()), ("Content-Length", b"2")]), b"{}")
    last = persistent(head(200, [("Transfer-Encoding", b"chunked")]), chunked(world.random, body))
    return Case([first, last], Expected(body, requests=2, last_target=where))


def redirect_with_other_letters(world: World) -> Case:
    """Raw UTF-8 in a Location is percent-encoded, as browsers do."""
    body = rows(world.random)
    answers = [moved(world, f"/{MARK}/dätä.jsonl?n=ü".encode()), good(world, body)]
    return Case(answers, Expected(body, requests=2, last_target=f"/{MARK}/d%C3%A4t%C3%A4.jsonl?n=%C3%BC"))


def redirect_to_a_refusal(world: World) -> Case:
    response = any_error_response(world)
    data = message(world.random, response.status, response.body)
    # If the error can be temporary, it is the response to the next tries.
    requests = TRIES + 1 if response.passing else 2
    return Case(
        [moved(world, world.target().encode()), send(data)], Expected(response.reason, requests=requests)
    )


def redirect_loop(world: World) -> Case:
    """A loop of one or two URLs, or an endless chain. The download gives up after a bounded number of redirects."""
    here, there = world.target(), world.target()
    answers = world.random.choice(
        [
            [moved(world, here.encode())],
            [moved(world, b"")],
            [moved(world, (here if number % 2 else there).encode()) for number in range(40)],
            [moved(world, world.target().encode()) for _ in range(40)],
        ]
    )
    return Case(answers, Expected(OUTAGE), target=here)


def redirect_without_location(world: World) -> Case:
    fields = world.random.choice([[], [("Content-Location", b"/x")], [("Refresh", b"0; url=/x")]])
    data = message(world.random, world.random.choice(_MOVED), world.random.choice(PAGES), *fields)
    return Case([send(data)], Expected(OUTAGE))


def redirect_to_nonsense(world: World) -> Case:
    """The target is no http or https URL."""
    location = world.random.choice(
        [
            f"ftp://host/{MARK}",
            f"file:///{MARK}",
            f"javascript:{MARK}()",
            f"data:text/plain,{MARK}",
            f"https:///{MARK}",
            f"http://[::1/{MARK}",
            f"http://host:99999/{MARK}",
            f"http://ho st/{MARK}",
            f"http://host\\@evil/{MARK}",
            f"http://%31.0.0.1/{MARK}",
            f"http://[not-an-address]/{MARK}",
        ]
    )
    return Case([moved(world, location.encode())], Expected(FORBIDDEN, requests=1))


def redirect_into_the_void(world: World) -> Case:
    """The target is a port without a listener, or a name that does not resolve."""
    origin = world.random.choice([world.closed, "http://unresolvable.example"])
    return Case([moved(world, (origin + world.target()).encode())], Expected(OUTAGE))


_PRIVATE = (
    *(
        "10.1.2.3",
        "172.16.0.9",
        "192.168.7.7",
        "127.0.0.1",
        "localhost",
        "169.254.169.254",
        "100.64.1.1",
        "0.0.0.0",  # noqa: S104 -- an address to reject
    ),
    *(
        "[::1]",
        "[fd00:ec2::254]",
        "[fe80::1]",
        "[::ffff:10.0.0.1]",
        "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]",
        "[::]",
    ),
    *("2130706433", "0x7f.1", "0177.0.0.1", "127.1", "0", "224.0.0.1", "255.255.255.255", "[ff02::1]"),
    *("inside.example", "metadata.example", "mapped.example", "INSIDE.EXAMPLE"),
)


def public_file(world: World) -> Case:
    body = rows(world.random)
    return Case([good(world, body)], Expected(body, requests=1), public=True)


def public_redirect(world: World) -> Case:
    body = rows(world.random)
    answers = [moved(world, (world.outside + world.target()).encode()), good(world, body)]
    return Case(answers, Expected(body, requests=2), public=True)


def public_redirect_inside(world: World) -> Case:
    """Every spelling of a private address, and names that resolve to one."""
    place = world.random.choice(_PRIVATE) + world.random.choice(["", ":443", ":8443"])
    location = f"https://{place}{world.target()}"
    return Case([moved(world, location.encode())], Expected(FORBIDDEN, requests=1), public=True)


def public_redirect_to_http(world: World) -> Case:
    origin = world.random.choice(
        [world.outside.replace("https:", "http:"), "http://93.184.216.34", world.inside]
    )
    answers = [moved(world, (origin + world.target()).encode())]
    return Case(answers, Expected(FORBIDDEN, requests=1), public=True)


def public_redirect_to_another_name(world: World) -> Case:
    """The target's certificate is for another name."""
    answers = [moved(world, ("https://other.example" + world.target()).encode())]
    return Case(answers, Expected(OUTAGE), public=True)


def private_url(world: World) -> Case:
    """The URL in the Secret is private, or is not https."""
    place = world.random.choice(
        [f"https://{host}" for host in _PRIVATE] + ["http://files.example", world.inside]
    )
    return Case([good(world, b"")], Expected(FORBIDDEN, requests=0), url=place + world.target(), public=True)
