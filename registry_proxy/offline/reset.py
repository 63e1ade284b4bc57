"""The way back in when the password of the last administrator is lost: written into the store, past every node."""

from registry_proxy.access.faults import InvalidError
from registry_proxy.directory.directory import Directory
from registry_proxy.directory.revise import NotFoundError
from registry_proxy.directory.users import UserInput
from registry_proxy.store.open import open_store


async def reset_admin(url: str, name: str, password: str) -> bool:
    """Make a user an enabled administrator with this password; return whether the user is new.

    Its groups and personal tokens stay; its bearer and refresh tokens end. Running nodes accept the password at once,
    and know of the rest within two seconds.

    Args:
        url: of the store.
        name: of the user.
        password: the new one.

    Raises:
        ValueError: the name or the password is not one that a user may have.
        StoreUnavailableError: the store does not answer, or is not there.
    """
    async with open_store(url, None, may_create=False) as (store, _):
        directory = Directory(store)
        try:
            try:
                groups = (await directory.users.get(name)).groups
            except NotFoundError:
                groups = ()
            given = UserInput(password=password, is_ldap=False, is_admin=True, groups=groups)
            return (await directory.users.put(name, given))[1]
        except InvalidError as error:
            raise ValueError(str(error)) from error
        finally:
            await directory.aclose()
