"""Opening the access control of a worker: the policy, and the key that signs tokens."""

import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from registry_proxy.access.control import AccessControl
from registry_proxy.access.id_tokens import IdTokenVerifier, TrustedIssuer
from registry_proxy.access.ldap import LdapPasswords
from registry_proxy.access.snapshot import WatchedChanges
from registry_proxy.access.tokens import TokenSigner, TokenVerifier, create_key_file
from registry_proxy.ports.store import Store


class SigningKeyError(Exception):
    """The file of the signing key cannot be used; the text says why."""


@dataclass(frozen=True, slots=True)
class SigningOptions:
    """The private key of a node, and the tokens that it signs."""

    key_file: str
    service: str
    lifetime_seconds: int


@dataclass(frozen=True, slots=True)
class AccessOptions:
    """The sources of logins, and the tokens they get.

    Args:
        signing: the key and the tokens.
        outage_max_age_seconds: see ``AccessControl``.
        issuers: their ID tokens are accepted.
        ldap: knows the passwords of users who have none here; None for nobody.
    """

    signing: SigningOptions
    outage_max_age_seconds: float | None
    issuers: Sequence[TrustedIssuer] = ()
    ldap: LdapPasswords | None = None


@dataclass(frozen=True, slots=True)
class Access:
    """The parts of access control."""

    control: AccessControl
    signer: TokenSigner


@contextlib.asynccontextmanager
async def open_access(options: AccessOptions, store: Store, changes: WatchedChanges) -> AsyncIterator[Access]:
    """Publish the node's key and follow the policy for the length of a with block.

    Raises:
        SigningKeyError: see the class.
        StoreUnavailableError: the policy cannot be read.
    """
    signer = open_signer(options.signing)
    control = AccessControl(
        store,
        changes,
        TokenVerifier(options.signing.service),
        outage_max_age_seconds=options.outage_max_age_seconds,
        id_tokens=IdTokenVerifier(options.issuers) if options.issuers else None,
        ldap=options.ldap,
    )
    try:
        async with control.publishing(signer):
            await control.policy()
            yield Access(control, signer)
    finally:
        await control.aclose()


def open_signer(options: SigningOptions) -> TokenSigner:
    """Return the signer with the node's private key, which is made if there is none. Raises SigningKeyError."""
    try:
        create_key_file(options.key_file)
        return TokenSigner(options.key_file, options.service, options.lifetime_seconds)
    except OSError as error:
        raise SigningKeyError(f"{options.key_file} cannot be used: {error.strerror}") from error
    except ValueError as error:
        raise SigningKeyError(str(error)) from error
