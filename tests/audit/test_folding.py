"""Folding: events of strangers and users have a bound in lines; each is counted, and no act is folded."""

from dataclasses import replace

from registry_proxy.audit.folding import TOGETHER_MAX, WHOLE_MAX, WINDOW_SECONDS, Folding
from registry_proxy.ports.events import AuditEvent, AuditKind


class Clock:
    """A clock that a test moves on."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def refusal(address: str, action: str = "login", subject: str = "", rule: str = "") -> AuditEvent:
    """Return an event that anybody can cause."""
    return AuditEvent(action, "refused", address=address, subject=subject, rule=rule)


def test_refusals_beyond_the_first_are_one_line_an_address_and_minute() -> None:
    """The first refusals of a minute are whole; the rest are counted by action, with examples of the differences."""
    clock = Clock()
    folding = Folding(clock)
    whole = [folding.takes_whole(refusal("10.0.0.1", subject=f"user:{number}", rule="wrong")) for number in range(500)]
    assert whole == [True] * WHOLE_MAX + [False] * (500 - WHOLE_MAX)
    assert not folding.takes_whole(refusal("10.0.0.1", "token"))
    assert folding.takes_whole(refusal("10.0.0.2"))
    assert folding.lines() == []
    clock.now = WINDOW_SECONDS
    logins, tokens = folding.lines()
    assert (logins.action, logins.outcome, logins.address, logins.rule) == ("login", "refused", "10.0.0.1", "wrong")
    assert (logins.detail["folded"], tokens.detail["folded"]) == (500 - WHOLE_MAX, 1)
    assert (logins.subject, len(logins.detail["subject"])) == ("", 5)
    assert folding.lines() == []
    assert folding.takes_whole(refusal("10.0.0.1"))


def test_all_addresses_together_are_bounded() -> None:
    """However many addresses and actions there are, lines per minute and memory stay bounded."""
    clock = Clock()
    folding = Folding(clock)
    events = [refusal(f"10.{number >> 8}.{number & 255}.1", f"x{number}") for number in range(5000)]
    whole = sum(folding.takes_whole(event) for event in events)
    assert whole == TOGETHER_MAX
    lines = folding.lines(all_of_them=True)
    assert len(lines) <= 256 + 10
    assert whole + sum(line.detail["folded"] for line in lines) == len(events)
    assert folding.lines(all_of_them=True) == []


def test_an_ipv6_network_counts_as_one() -> None:
    """Addresses of one /64 share their lines, which name the network."""
    folding = Folding(Clock())
    whole = [folding.takes_whole(refusal(f"2001:db8::{number:x}")) for number in range(100)]
    assert sum(whole) == WHOLE_MAX
    assert [line.address for line in folding.lines(all_of_them=True)] == ["2001:db8::/64"]


def test_acts_and_the_work_of_clients_are_never_folded() -> None:
    """Acts of administrators, also failed ones, and pushes are whole; users' changes of their own data are folded."""
    folding = Folding(Clock())
    for outcome in ("ok", "failed"):
        act = AuditEvent("grants.post", outcome, subject="user:admin", address="::1", kind=AuditKind.ACT)
        assert all(folding.takes_whole(act) for _ in range(500))
    assert all(folding.takes_whole(AuditEvent("push", "ok", subject="user:ann")) for _ in range(500))
    own = AuditEvent("me.tokens.post", "ok", subject="user:ann", address="10.0.0.1", kind=AuditKind.ACCOUNT)
    assert sum(folding.takes_whole(own) for _ in range(500)) == WHOLE_MAX
    assert folding.takes_whole(AuditEvent("login", "ok", subject="user:bob", kind=AuditKind.ACCOUNT))
    (line,) = folding.lines(all_of_them=True)
    assert (line.subject, line.address, line.kind, line.detail["folded"]) == (
        "user:ann",
        "10.0.0.1",
        AuditKind.ACCOUNT,
        500 - WHOLE_MAX,
    )


def test_a_login_from_another_address_is_not_lost_among_others() -> None:
    """Each address of a subject has its own lines, up to the subject's bound; others' lines are unaffected."""
    folding = Folding(Clock())
    busy = AuditEvent("login", "ok", subject="robot:ci", address="10.0.0.1", kind=AuditKind.ACCOUNT)
    assert sum(folding.takes_whole(busy) for _ in range(500)) == WHOLE_MAX
    assert folding.takes_whole(replace(busy, address="192.0.2.1"))
    spread = [replace(busy, address=f"10.1.{number}.1") for number in range(250)]
    assert sum(folding.takes_whole(event) for event in spread) < TOGETHER_MAX
    assert folding.takes_whole(replace(busy, subject="user:ann"))
    assert folding.takes_whole(refusal("10.0.0.1"))
    assert sum(line.detail["folded"] for line in folding.lines(all_of_them=True)) > 480


def test_one_subject_at_many_addresses_leaves_room_for_others() -> None:
    """Logins of one user from thousands of networks in a minute do not fold logins or changes of others."""
    folding, event = Folding(Clock()), AuditEvent("login", "ok", subject="user:eve", kind=AuditKind.ACCOUNT)
    whole = sum(folding.takes_whole(replace(event, address=f"2001:db8:0:{n:x}::1")) for n in range(5000))
    assert whole == TOGETHER_MAX
    for number in range(50):
        change = replace(event, action="grants.post", subject=f"user:u{number}", address="192.0.2.1")
        assert folding.takes_whole(change)
    lines = folding.lines(all_of_them=True)
    assert {line.subject for line in lines} == {"user:eve"}
    assert sum(line.detail["folded"] for line in lines) == 5000 - TOGETHER_MAX
