"""ID tokens (OpenID Connect Core 1.0, section 2) of issuers in the configuration, and the subjects that they name.

CI systems and Kubernetes give them to each job or pod: nobody keeps a secret. An issuer, audience or
algorithm that is not listed is refused.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jwt

from registry_proxy.access.credentials import LoginRefusedError
from registry_proxy.access.issuer_keys import ALGORITHMS, IssuerKeys
from registry_proxy.access.subject import oidc_subject

LEEWAY_SECONDS = 10
"""How far an issuer's clock may be from ours."""

_TOKEN_MAX_LENGTH = 16_384
# x5t is no such header: GitHub and Azure send it along, and it only names a certificate, which is not looked at.
_HEADERS_THAT_BRING_A_KEY = frozenset({"jwk", "jku", "x5c", "x5u", "crit"})
_EVIDENCE_MAX_LENGTH = 300
_PLACEHOLDER = re.compile(r"\{([^{}]+)\}")


class IdTokenRefusedError(LoginRefusedError):
    """An ID token is refused. Unlike for a password, the answer has the reason: it helps nobody to guess."""


@dataclass(frozen=True, slots=True)
class ClaimRule:
    """Names those whose claims all match, each by one of its patterns; ``{claim}`` in ``subject`` is its value."""

    name: str
    claims: Mapping[str, Sequence[re.Pattern[str]]]
    subject: str
    groups: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class TrustedIssuer:
    """An issuer whose tokens for ``audience`` are accepted; the first rule that matches names their subject."""

    name: str
    url: str
    audience: str
    rules: Sequence[ClaimRule]
    keys: IssuerKeys


@dataclass(frozen=True, slots=True)
class VerifiedIdToken:
    """The person or job that a token speaks of, its end (Unix seconds), and its mark in an audit log."""

    subject: str
    expires_at: float
    evidence: Mapping[str, str] = field(default_factory=dict)


class IdTokenVerifier:
    """Verifies ID tokens of a closed list of issuers."""

    def __init__(self, issuers: Iterable[TrustedIssuer]) -> None:
        self._issuers = {issuer.url: issuer for issuer in issuers}

    @property
    def groups(self) -> Mapping[str, Collection[str]]:
        """The groups that each rule gives, by ``ISSUER/RULE``."""
        rules = [(issuer.name, rule) for issuer in self._issuers.values() for rule in issuer.rules]
        return {f"{issuer}/{rule.name}": rule.groups for issuer, rule in rules}

    async def verify(self, token: str) -> VerifiedIdToken:
        """Return the subject that a token names.

        Raises:
            IdTokenRefusedError: for any other text, of any size; the message holds no part of it.
            IssuerUnavailableError: the keys of its issuer cannot be known now.
        """
        header, issuer = self._read_unverified(token)
        key = await issuer.keys.find(_kid_of(header))
        if key is None:
            raise IdTokenRefusedError("it is signed with a key that its issuer does not publish")
        claims = _decode(token, key, issuer.url)
        # A list with anything besides is for others as well, and any of them could use it here.
        if claims["aud"] not in (issuer.audience, [issuer.audience]):
            raise IdTokenRefusedError(f"its audience is not {issuer.audience}, which it has to be alone")
        evidence = {name: str(claims[name])[:_EVIDENCE_MAX_LENGTH] for name in ("iss", "sub", "jti") if name in claims}
        return VerifiedIdToken(_subject_of(claims, issuer), float(claims["exp"]), evidence)

    def _read_unverified(self, token: str) -> tuple[Mapping[str, Any], TrustedIssuer]:
        """Return the header and whose key is needed. Nothing of it is believed yet."""
        if len(token) > _TOKEN_MAX_LENGTH:
            raise IdTokenRefusedError(f"it is longer than {_TOKEN_MAX_LENGTH} characters")
        try:
            unverified = jwt.decode_complete(token, options={"verify_signature": False})
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
            raise IdTokenRefusedError("it is no JSON Web Token") from None
        url = unverified["payload"].get("iss")
        issuer = self._issuers.get(url) if isinstance(url, str) else None
        if issuer is None:
            raise IdTokenRefusedError("its issuer is not one that auth.oidc lists")
        return unverified["header"], issuer


def _kid_of(header: Mapping[str, Any]) -> str:
    algorithm = header.get("alg")
    if not isinstance(algorithm, str) or algorithm not in ALGORITHMS:
        raise IdTokenRefusedError("its signature is not made by a private key")
    if not _HEADERS_THAT_BRING_A_KEY.isdisjoint(header):
        raise IdTokenRefusedError("it brings a key or an extension of its own")
    kid = header.get("kid")
    if not isinstance(kid, str):
        raise IdTokenRefusedError("it does not name the key that it is signed with (kid)")
    return kid


def _decode(token: str, key: jwt.PyJWK, issuer: str) -> Mapping[str, Any]:
    """Return the claims of a token whose signature, issuer and times are right."""
    try:
        claims: Mapping[str, Any] = jwt.decode(
            token,
            key,
            algorithms=[key.algorithm_name],
            issuer=issuer,
            leeway=LEEWAY_SECONDS,
            options={"require": ["iss", "aud", "sub", "exp", "iat"], "verify_aud": False},
        )
    except jwt.ExpiredSignatureError:
        raise IdTokenRefusedError("it has expired") from None
    except jwt.ImmatureSignatureError:
        raise IdTokenRefusedError("it is not valid yet: compare the clocks") from None
    except jwt.MissingRequiredClaimError as error:
        raise IdTokenRefusedError(f"the claim {error.claim} is missing") from None
    except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError):
        raise IdTokenRefusedError("its signature, or one of its claims, is not right") from None
    if type(claims["exp"]) not in {int, float} or claims["exp"] >= 2**53:
        raise IdTokenRefusedError("its exp is no time")
    return claims


def _subject_of(claims: Mapping[str, Any], issuer: TrustedIssuer) -> str:
    for rule in issuer.rules:
        if all(_matches(claims.get(name), patterns) for name, patterns in rule.claims.items()):
            return _name(claims, issuer, rule)
    raise IdTokenRefusedError(f"no rule of auth.oidc.{issuer.name} fits its claims")


def _name(claims: Mapping[str, Any], issuer: TrustedIssuer, rule: ClaimRule) -> str:
    """Return the subject that a rule makes of claims; two that differ in any of its claims never make the same."""
    where = f"the subject of rule {rule.name} of auth.oidc.{issuer.name}"
    name, *parts = _PLACEHOLDER.split(rule.subject)
    for index in range(0, len(parts), 2):
        claim, behind = parts[index : index + 2]
        text = _text(claims.get(claim))
        if text is None:
            raise IdTokenRefusedError(f"the claim {claim}, a part of its name, is missing")
        is_last = index + 2 == len(parts)
        if not is_last and (text + behind).find(behind) != len(text):
            # acme/x and y would be called as acme and x/y are.
            raise IdTokenRefusedError(f"its claim {claim} holds {behind!r}, which ends it in {where}")
        name += text + behind
    try:
        return oidc_subject(f"{issuer.name}/{rule.name}", name)
    except ValueError:
        raise IdTokenRefusedError(f"what {where} makes of its claims can be no name") from None


def _matches(claim: object, patterns: Sequence[re.Pattern[str]]) -> bool:
    """Tell whether a claim, or one entry of one that is a list, is what one of the patterns says."""
    texts = [_text(entry) for entry in (claim if isinstance(claim, list) else [claim])]
    return any(pattern.fullmatch(text) is not None for text in texts if text is not None for pattern in patterns)


def _text(claim: object) -> str | None:
    if isinstance(claim, bool):
        return str(claim).lower()
    return str(claim) if isinstance(claim, str | int) else None
