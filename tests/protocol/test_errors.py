"""Errors: the codes, their statuses, and a body that docker does not take for a bare code."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry_proxy.protocol.errors import ErrorCode, RegistryError, bad_gateway, format_errors, unavailable
from registry_proxy.protocol.reference import digest_of

JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=3))

# OCI distribution-spec 1.1, "Error Codes", code-1 to code-14.
SPEC_CODES = [
    "BLOB_UNKNOWN", "BLOB_UPLOAD_INVALID", "BLOB_UPLOAD_UNKNOWN", "DIGEST_INVALID", "MANIFEST_BLOB_UNKNOWN",
    "MANIFEST_INVALID", "MANIFEST_UNKNOWN", "NAME_INVALID", "NAME_UNKNOWN", "SIZE_INVALID", "UNAUTHORIZED", "DENIED",
    "UNSUPPORTED", "TOOMANYREQUESTS",
]  # fmt: skip


@pytest.mark.parametrize("code", SPEC_CODES)
def test_every_code_of_the_spec_is_known(code: str) -> None:
    """Each code of the spec exists under its own name and is an error status."""
    assert ErrorCode[code].value == code
    assert 400 <= ErrorCode[code].status < 600


@given(st.text(), JSON)
def test_the_body_is_the_specs_with_a_detail(message: str, detail: object) -> None:
    """Any message and detail give the spec's JSON; detail is never null: docker would retry for 50 seconds."""
    (error,) = json.loads(format_errors("DENIED", message, detail))["errors"]
    assert error["code"] == "DENIED"
    assert error["message"] == message
    assert error["detail"] is not None
    assert error["detail"] == ({} if detail is None else detail)


def test_a_detail_that_json_cannot_hold_is_written_as_text() -> None:
    """An error about a digest is written, though a digest is no JSON value."""
    digest = digest_of(b"")
    (error,) = json.loads(format_errors("BLOB_UNKNOWN", "no such blob", {"digest": digest}))["errors"]
    assert error["detail"] == {"digest": str(digest)}


def test_the_status_is_the_codes_unless_given() -> None:
    """One code can have two statuses; each error has one."""
    assert RegistryError(ErrorCode.DENIED, "no").status == 401
    assert RegistryError(ErrorCode.DENIED, "no", status=403).status == 403
    assert "no" in str(RegistryError(ErrorCode.DENIED, "no", detail={"name": "a"}))


def test_an_uncertain_answer_is_a_503_with_retry_after() -> None:
    """An uncertain answer is never a 404, and has the time to wait; a misbehaving upstream is a 502."""
    error = unavailable("no replica answers")
    assert (error.code, error.status, error.headers["Retry-After"]) == (ErrorCode.UNAVAILABLE, 503, "5")
    assert bad_gateway("it refused our credentials").status == 502
