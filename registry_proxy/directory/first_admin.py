"""The administrator that a new service makes for itself."""

import logging

from registry_proxy.access.faults import InvalidError
from registry_proxy.directory.users import FIRST_ADMIN, Users

_log = logging.getLogger(__name__)


class FirstAdminError(Exception):
    """The password that was given for the first administrator breaks a rule; the text says which."""


async def make_first_admin(users: Users, password: str | None, variable: str) -> str | None:
    """Make the first administrator where there is none; return the password that was generated for it, if any.

    Args:
        users: of the directory.
        password: for it; None for a generated one.
        variable: where the password comes from, for the warning that it has no effect.

    Raises:
        FirstAdminError: the password breaks a rule.
    """
    try:
        made = await users.ensure_first_admin(password)
    except InvalidError as error:
        raise FirstAdminError(f"{variable} cannot be the password of the first admin: {error}") from None
    if password is not None and not await users.has_password(FIRST_ADMIN, password):
        _log.warning(
            "%s has no effect: there is an administrator already, and it is not the password of %s; "
            "`registry-proxy admin reset --config FILE` sets a new one",
            variable,
            FIRST_ADMIN,
        )
    return made
