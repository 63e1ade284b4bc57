"""The directory: all records of access over one store, each resource an attribute."""

from registry_proxy.access.credentials import Passwords
from registry_proxy.directory.grants import Grants
from registry_proxy.directory.groups import Groups
from registry_proxy.directory.policy import PolicyDocument
from registry_proxy.directory.revocations import Revocations
from registry_proxy.directory.robots import Robots
from registry_proxy.directory.rules import Rules
from registry_proxy.directory.secrets import Secrets
from registry_proxy.directory.subscriptions import Subscriptions
from registry_proxy.directory.users import Users
from registry_proxy.ports.store import Store


class Directory:
    """The resources, one attribute each.

    Every method of theirs raises StoreUnavailableError. ``expect`` is the revision the caller saw; None for any.
    """

    def __init__(self, store: Store) -> None:
        self._passwords = Passwords()
        self.users = Users(store, self._passwords)
        self.groups = Groups(store)
        self.robots = Robots(store)
        self.secrets = Secrets(store)
        self.grants = Grants(store)
        self.policy = PolicyDocument(store)
        self.revocations = Revocations(store)
        self.subscriptions = Subscriptions(store)
        self.rules = Rules(store)

    async def aclose(self) -> None:
        """End the threads that hash passwords."""
        self._passwords.close()
