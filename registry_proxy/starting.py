"""Faults of a start that an operator can correct, in words and without a traceback."""

import contextlib
from collections.abc import Iterator

from registry_proxy.access.open import SigningKeyError
from registry_proxy.cache.layout import CacheMoveError, CacheSchemaError
from registry_proxy.config.errors import StartError
from registry_proxy.directory.first_admin import FirstAdminError
from registry_proxy.files.certificate import CertificateError
from registry_proxy.ports.errors import StoreUnavailableError
from registry_proxy.store.schema import SchemaTooNewError


@contextlib.contextmanager
def start_errors() -> Iterator[None]:
    """Report a fault that an operator can correct as a StartError."""
    try:
        yield
    except SigningKeyError as error:
        raise StartError(f"auth.signing_key_file: {error}") from error
    except (CertificateError, FirstAdminError) as error:
        raise StartError(str(error)) from error
    except (CacheMoveError, CacheSchemaError, SchemaTooNewError, StoreUnavailableError) as error:
        raise StartError(str(error)) from error
