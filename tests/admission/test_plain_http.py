"""Changes over plain HTTP: the addresses from which they are accepted."""

from unittest.mock import Mock

import pytest
from aiohttp.test_utils import make_mocked_request

from registry_proxy.admission.plain_http import PlainHttp
from registry_proxy.api.problems import ProblemError

PROXY, STRANGER = "10.0.0.1", "10.9.9.9"
HTTPS = {"X-Forwarded-Proto": "https"}


@pytest.mark.parametrize(
    ("remote", "headers", "is_tls", "is_allowed", "is_accepted"),
    [
        ("127.0.0.1", {}, False, False, True),
        ("::1", {}, False, False, True),
        ("::ffff:127.0.0.1", {}, False, False, True),
        (STRANGER, {}, False, False, False),
        (STRANGER, HTTPS, False, False, False),
        (STRANGER, {}, True, False, True),
        (STRANGER, {}, False, True, True),
        (PROXY, {}, False, False, False),
        (PROXY, {"X-Forwarded-Proto": "http"}, False, False, False),
        (PROXY, HTTPS, False, False, True),
    ],
)
def test_a_change_that_others_can_read_is_refused(
    *, remote: str, headers: dict[str, str], is_tls: bool, is_allowed: bool, is_accepted: bool
) -> None:
    """Without TLS, changes come from this machine or through a trusted proxy with TLS, or need `admin_insecure`."""
    transport = Mock()
    transport.get_extra_info = {"ssl_object": object() if is_tls else None, "peername": (remote, 1)}.get
    request = make_mocked_request("PUT", "/admin/v1/users/ann", headers=headers, transport=transport)
    check = PlainHttp(lambda address: address == PROXY, is_allowed=is_allowed).check
    if is_accepted:
        check(request)
    else:
        with pytest.raises(ProblemError, match="admin_tls") as refusal:
            check(request)
        assert refusal.value.status == 403
