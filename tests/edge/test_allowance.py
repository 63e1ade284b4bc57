"""The allowance: the number of acts of each subject."""

import pytest

from registry_proxy.edge.allowance import Allowance
from registry_proxy.protocol.errors import RegistryError


def test_each_subject_has_an_allowance_that_fills_again() -> None:
    """Beyond its allowance a subject is refused, and no other is; with time there is more."""
    now = 100.0
    allowance = Allowance(at_once=4, refilled_seconds=40, clock=lambda: now)
    for _ in range(4):
        allowance.take("user:ann")
    with pytest.raises(RegistryError) as refused:
        allowance.take("user:ann")
    assert (refused.value.status, refused.value.headers) == (429, {"Retry-After": "10"})
    allowance.take("user:bob")
    now += 20
    for _ in range(2):
        allowance.take("user:ann")
    with pytest.raises(RegistryError):
        allowance.take("user:ann")
    now += 1000
    for _ in range(4):
        allowance.take("user:ann")
    with pytest.raises(RegistryError):
        allowance.take("user:ann")
