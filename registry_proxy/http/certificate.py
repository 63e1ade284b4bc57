"""The certificate of a listener, read again when its files change."""

import contextlib
import logging
from collections.abc import AsyncIterator, Mapping

from registry_proxy.files.certificate import CertificateError, TlsFiles
from registry_proxy.ports.metrics import CertificateInUse, Listener, Observer
from registry_proxy.tasks import repeat, running

_LOOK_SECONDS = 2.0

_log = logging.getLogger(__name__)


@contextlib.asynccontextmanager
async def open_certificates(
    files: Mapping[Listener, TlsFiles], observer: Observer
) -> AsyncIterator[Mapping[Listener, "Certificate"]]:
    """Give the certificate of each listener; it follows its files. Raises CertificateError."""
    certificates = {listener: Certificate(listener, each, observer) for listener, each in files.items()}
    async with contextlib.AsyncExitStack() as stack:
        for listener, certificate in certificates.items():
            await stack.enter_async_context(running(certificate.run(), f"certificate of the {listener} listener"))
        yield certificates


class Certificate:
    """The certificate that new connections get; see ``run``.

    Args:
        listener: whose it is.
        files: where it lies.
        observer: receives when the certificate in use expires.

    Raises:
        CertificateError: the files cannot be used.
    """

    def __init__(self, listener: Listener, files: TlsFiles, observer: Observer) -> None:
        self._listener: Listener = listener
        self._files = files
        self._observer = observer
        self._seen = self._files.stamps()
        self._take_up()

    def _take_up(self) -> None:
        context, expires_at = self._files.load(), self._files.expires_at()
        self.context = context
        self._observer.observe(CertificateInUse(self._listener, expires_at))

    async def run(self) -> None:
        """Read the files again whenever they change; files that do not fit together leave all as it was."""
        await repeat(self._renew, _LOOK_SECONDS)

    async def _renew(self) -> None:
        if (seen := self._files.stamps()) == self._seen:
            return
        self._seen = seen
        try:
            self._take_up()
        except CertificateError as error:
            _log.warning("the certificate was not exchanged, the one before stays in use: %s", error)
            return
        _log.info("the certificate in %s is in use", self._files.cert_file)
