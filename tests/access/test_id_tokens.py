"""ID tokens: each attack is refused with its own reason; rules name the subjects."""

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st

from registry_proxy.access.id_tokens import ClaimRule, IdTokenRefusedError, IdTokenVerifier, TrustedIssuer
from registry_proxy.access.issuer_keys import IssuerKeys, IssuerUnavailableError
from registry_proxy.protocol.patterns import compile_text_pattern
from tests.support.fakes.issuer import AUDIENCE, FakeIssuer, part, running_issuer


@pytest.fixture
def issuer() -> Iterator[FakeIssuer]:
    """Serve an issuer."""
    with running_issuer() as issuer:
        yield issuer


def rule(name: str, subject: str = "{repository}", *, groups: tuple[str, ...] = (), **claims: str) -> ClaimRule:
    """Return a rule; each claim has patterns with a space between them."""
    patterns = {claim: [compile_text_pattern(each) for each in text.split()] for claim, text in claims.items()}
    return ClaimRule(name, patterns, subject, groups)


MAIN = rule("main", repository="acme/*", ref="refs/heads/main", groups=("deployers",))
ANY = rule("any", repository="acme/*")


def trusting(issuer: FakeIssuer, *rules: ClaimRule) -> IdTokenVerifier:
    """Return a verifier that trusts an issuer; by default jobs of acme's repositories."""
    trusted = TrustedIssuer("ci", issuer.url, AUDIENCE, rules or (MAIN, ANY), IssuerKeys(issuer.url))
    return IdTokenVerifier([trusted])


async def refusal(issuer: FakeIssuer, token: str, *rules: ClaimRule) -> str:
    """Return the reason why a token is refused; it may hold no part of the token."""
    with pytest.raises(IdTokenRefusedError) as caught:
        await trusting(issuer, *rules).verify(token)
    assert not [each for each in token.split(".") if len(each) > 20 and each in str(caught.value)]
    return str(caught.value)


async def test_a_token_names_its_subject(issuer: FakeIssuer) -> None:
    """The subject holds the issuer, the rule and the name that the rule makes; the token's end and identity follow."""
    claims = issuer.claims()
    proved = await trusting(issuer).verify(issuer.token())
    assert (proved.subject, proved.expires_at) == ("oidc:ci/main/acme/app", claims["exp"])
    assert proved.evidence == {"iss": issuer.url, "sub": claims["sub"], "jti": "job-1"}


@pytest.mark.parametrize("key", [ec.generate_private_key(ec.SECP256R1()), ed25519.Ed25519PrivateKey.generate()])
async def test_other_kinds_of_signature_are_taken(
    issuer: FakeIssuer, key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
) -> None:
    """An issuer may sign with a curve."""
    issuer.keys = {"curve": key}
    assert (await trusting(issuer).verify(issuer.token())).subject == "oidc:ci/main/acme/app"


async def test_a_rotated_key_is_taken_and_the_old_one_is_not(issuer: FakeIssuer) -> None:
    """A token signed with the new key is good; one signed with the withdrawn key is refused once that is known."""
    old = issuer.token()
    issuer.rotate()
    verifier = trusting(issuer)
    assert (await verifier.verify(issuer.token())).subject
    with pytest.raises(IdTokenRefusedError, match="a key that its issuer does not publish"):
        await verifier.verify(old)


# ---------------------------------------------------------------- attacks


async def test_replay_after_expiry(issuer: FakeIssuer) -> None:
    """A token is refused once it has expired, with ten seconds of tolerance."""
    now = int(time.time())
    assert "expired" in await refusal(issuer, issuer.token(exp=now - 11))
    assert (await trusting(issuer).verify(issuer.token(exp=now - 5))).expires_at == now - 5


@pytest.mark.parametrize("claim", ["nbf", "iat"])
async def test_a_token_of_the_future(issuer: FakeIssuer, claim: str) -> None:
    """A token is refused before its nbf and before the time of its issue."""
    now = int(time.time())
    late: dict[str, Any] = {claim: now + 30}
    assert "not valid yet" in await refusal(issuer, issuer.token(**late))
    near: dict[str, Any] = {claim: now + 5}
    assert (await trusting(issuer).verify(issuer.token(**near))).subject


@pytest.mark.parametrize("claim", ["aud", "sub", "exp", "iat"])
async def test_a_claim_that_is_needed_is_missing(issuer: FakeIssuer, claim: str) -> None:
    """Each missing claim is named in the refusal."""
    assert await refusal(issuer, issuer.token(**{claim: None})) == f"the claim {claim} is missing"


@pytest.mark.parametrize(
    "audience",
    [
        "https://other.example.com",
        f"{AUDIENCE}/",
        AUDIENCE.upper(),
        AUDIENCE[:-1],
        [AUDIENCE, "https://other.example.com"],
        [AUDIENCE, AUDIENCE],
        [[AUDIENCE]],
        [],
        {AUDIENCE: 1},
        "*",
        7,
    ],
)
async def test_wrong_audience(issuer: FakeIssuer, audience: Any) -> None:
    """A token for another audience, or for others as well, is refused."""
    assert "audience" in await refusal(issuer, issuer.token(aud=audience))


async def test_an_audience_in_a_list_of_its_own(issuer: FakeIssuer) -> None:
    """Kubernetes writes a single audience as a list."""
    assert (await trusting(issuer).verify(issuer.token(aud=[AUDIENCE]))).subject


async def test_unknown_issuer(issuer: FakeIssuer) -> None:
    """An unlisted issuer is refused without a request to it, also one with nearly the name of a listed issuer."""
    with running_issuer() as other:
        for url in (other.url, f"{issuer.url}/", issuer.url.upper(), issuer.url[:-1], [issuer.url], None, 7):
            token = other.token(iss=url)
            assert await refusal(issuer, token) == "its issuer is not one that auth.oidc lists"
        assert other.asked == []
    assert issuer.asked == []


async def test_another_issuers_key(issuer: FakeIssuer) -> None:
    """A foreign key under the name and key ID of a listed issuer gives a wrong signature."""
    forged = jwt.encode(issuer.claims(), rsa.generate_private_key(65537, 2048), "RS256", headers={"kid": "first"})
    assert "signature" in await refusal(issuer, forged)


async def test_hs256_with_the_public_key(issuer: FakeIssuer) -> None:
    """The public key, which everybody has, is no shared secret (CVE-2022-29217)."""
    signing_input = f"{part({'alg': 'HS256', 'kid': 'first'})}.{part(issuer.claims())}"
    signature = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256)
    for secret in (issuer.public_pem(), issuer.jwks()):
        signed = signature.sign(signing_input.encode(), secret)
        token = f"{signing_input}.{jwt.utils.base64url_encode(signed).decode()}"
        assert "not made by a private key" in await refusal(issuer, token)


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "", None, "HS512", "RS256 ", ["RS256"], "ES256K"])
async def test_alg_none_and_others(issuer: FakeIssuer, algorithm: Any) -> None:
    """Unsigned tokens, and algorithms that are not on the list."""
    token = f"{part({'alg': algorithm, 'kid': 'first'})}.{part(issuer.claims())}."
    assert await refusal(issuer, token)


@pytest.mark.parametrize("algorithm", ["PS256", "RS512"])
async def test_another_algorithm_than_the_keys(issuer: FakeIssuer, algorithm: str) -> None:
    """A key is used only with the algorithm for which it is published."""
    token = jwt.encode(issuer.claims(), next(iter(issuer.keys.values())), algorithm, headers={"kid": "first"})
    assert "signature" in await refusal(issuer, token)


async def test_another_algorithm_in_the_header(issuer: FakeIssuer) -> None:
    """A good signature is refused when the header names another algorithm."""
    signing_input = f"{part({'alg': 'RS512', 'kid': 'first'})}.{part(issuer.claims())}"
    algorithm = jwt.algorithms.RSAAlgorithm(jwt.algorithms.RSAAlgorithm.SHA256)
    signed = algorithm.sign(signing_input.encode(), next(iter(issuer.keys.values())))  # type: ignore[arg-type]  # RSA
    assert "signature" in await refusal(issuer, f"{signing_input}.{jwt.utils.base64url_encode(signed).decode()}")


@pytest.mark.parametrize("header", ["jku", "jwk", "x5u", "x5c", "crit"])
async def test_jku_and_other_headers_that_bring_a_key(issuer: FakeIssuer, header: str) -> None:
    """A key URL or a key in the token is ignored; no request goes there."""
    with running_issuer() as attacker:
        value: Any = {"jku": f"{attacker.url}/keys", "x5u": f"{attacker.url}/keys", "jwk": {"kty": "RSA"}}
        token = issuer.token({header: value.get(header, ["b64"])})
        assert await refusal(issuer, token)
        assert attacker.asked == []


async def test_a_certificates_thumbprint_is_no_key(issuer: FakeIssuer) -> None:
    """The header ``x5t``, which GitHub and Azure send, is ignored."""
    assert (await trusting(issuer).verify(issuer.token({"x5t": "abc"}))).subject


@pytest.mark.parametrize("kid", [None, "", "../../etc/passwd", "second", 7])
async def test_kid_games(issuer: FakeIssuer, kid: Any) -> None:
    """Without the ID of a published key a token is refused, even where the key could be guessed."""
    token = f"{part({'alg': 'RS256', 'kid': kid})}.{part(issuer.claims())}.{part('x')}"
    assert await refusal(issuer, token)


@pytest.mark.parametrize("name", ["exp", "iat", "nbf"])
@pytest.mark.parametrize("value", ["tomorrow", float("inf"), float("nan"), [], {}, True, "99999999999", 2**53])
async def test_times_that_are_none(issuer: FakeIssuer, name: str, value: Any) -> None:
    """Infinity, text and lists as times are refused or ignored; they never cause an error of ours."""
    try:
        proved = await trusting(issuer).verify(issuer.token(**{name: value}))
    except IdTokenRefusedError:
        return
    assert name != "exp"
    assert proved.subject


@pytest.mark.parametrize("token", ["", ".", "..", "a.b.c", "x" * 20_000, f"{part([])}.{part([])}.", "\udcff.é.\0"])
async def test_text_that_is_no_token(issuer: FakeIssuer, token: str) -> None:
    """Text of any kind and size is refused, and costs the issuer nothing."""
    assert await refusal(issuer, token)
    assert issuer.asked == []


async def test_deep_json(issuer: FakeIssuer) -> None:
    """Deeply nested claims end in a refusal."""
    nested = jwt.utils.base64url_encode(b'{"iss":' + b"[" * 11_000).decode()
    assert await refusal(issuer, f"{part({'alg': 'RS256', 'kid': 'first'})}.{nested}.")


@given(st.text())
def test_any_text_is_refused_in_words(text: str) -> None:
    """Any text gives a refusal in words and no other exception."""
    with pytest.raises(IdTokenRefusedError):
        asyncio.run(IdTokenVerifier([]).verify(text))


async def test_issuer_away_is_not_a_refusal(issuer: FakeIssuer) -> None:
    """While the keys are unavailable nobody is let in, and the error names the issuer."""
    issuer.answers["/keys"] = (503, {}, b"")
    with pytest.raises(IssuerUnavailableError, match=issuer.url):
        await trusting(issuer).verify(issuer.token())


# ---------------------------------------------------------------- rules


async def test_the_first_rule_that_fits_decides(issuer: FakeIssuer) -> None:
    """The rules are tried in their order."""
    verifier = trusting(issuer)
    proved = [await verifier.verify(issuer.token(ref=ref)) for ref in ("refs/heads/main", "refs/heads/x")]
    assert [each.subject for each in proved] == ["oidc:ci/main/acme/app", "oidc:ci/any/acme/app"]
    assert verifier.groups == {"ci/main": ("deployers",), "ci/any": ()}


@pytest.mark.parametrize(
    "claims",
    [
        {"repository": "acme-evil/app"},
        {"repository": "evil/acme/app"},
        {"repository": "acme/app\n"},
        {"repository": None},
        {"repository": {"acme/app": 1}},
        {"repository": ["other/app"]},
        {"repository": True},
    ],
)
async def test_a_token_that_no_rule_fits_is_refused(issuer: FakeIssuer, claims: dict[str, Any]) -> None:
    """A token that nearly fits a rule is refused."""
    assert await refusal(issuer, issuer.token(**claims)) == "no rule of auth.oidc.ci fits its claims"


async def test_all_claims_of_a_rule_must_match(issuer: FakeIssuer) -> None:
    """One claim that does not match is enough for a refusal."""
    assert "no rule" in await refusal(issuer, issuer.token(ref="refs/heads/x"), MAIN)


async def test_values_that_are_no_text(issuer: FakeIssuer) -> None:
    """Truth values and numbers match as JSON writes them; one entry of a list and one of several patterns is enough."""
    picky = rule("picky", "{id}", verified="true", id="7", teams="ops dev*")
    subject = (
        await trusting(issuer, picky).verify(issuer.token(verified=True, id=7, teams=["x", "developers"]))
    ).subject
    assert subject == "oidc:ci/picky/7"


@pytest.mark.parametrize("value", ["a b", "-a", "ä", "a,b", "a$b", "x" * 201, "", "a\nb", ["a"], None])
async def test_a_name_that_can_be_none(issuer: FakeIssuer, value: Any) -> None:
    """A text that a rule makes of the claims is refused unless it is a valid name."""
    assert await refusal(issuer, issuer.token(who=value), rule("any", "{who}", repository="*"))


@pytest.mark.parametrize(
    ("subject", "one", "other", "separator"),
    [
        ("{a}/{b}", ("x/y", "z"), ("x", "y/z"), "/"),
        ("of-{a}--{b}", ("x-", "y"), ("x", "-y"), "--"),
        ("{a}:{b}/end", ("x:y", "z"), ("x", "y:z"), ":"),
    ],
)
async def test_two_jobs_are_never_called_the_same(
    issuer: FakeIssuer, subject: str, one: tuple[str, str], other: tuple[str, str], separator: str
) -> None:
    """A claim may not hold the separator that ends it in the name: the rest would count as another claim's value."""
    both = rule("both", subject, repository="*")
    reason = await refusal(issuer, issuer.token(a=one[0], b=one[1]), both)
    assert reason == f"its claim a holds {separator!r}, which ends it in the subject of rule both of auth.oidc.ci"
    proved = await trusting(issuer, both).verify(issuer.token(a=other[0], b=other[1]))
    assert proved.subject == "oidc:ci/both/" + subject.format(a=other[0], b=other[1])
