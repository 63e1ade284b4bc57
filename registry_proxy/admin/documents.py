"""The documents that the admin API answers, each, as the handlers make it and as the OpenAPI document describes it."""

from typing import Annotated, Any, Generic, Literal, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, RootModel

from registry_proxy.access.grant import GrantMode
from registry_proxy.access.secrets import SecretKind, SecretState
from registry_proxy.admin.requests import format_time
from registry_proxy.ports.replicas import ReplicaState
from registry_proxy.protocol.scope import Action

_ACTION_ORDER = list(Action)


def _read_time(moment: Any) -> Any:
    return format_time(moment) if isinstance(moment, float | int) else moment


Time = Annotated[str, BeforeValidator(_read_time), Field(json_schema_extra={"format": "date-time"})]
"""A text of RFC 3339; Unix seconds become one."""

Actions = Annotated[list[Action], BeforeValidator(lambda actions: sorted(actions, key=_ACTION_ORDER.index))]


class Document(BaseModel):
    """A JSON object with exactly these fields."""

    model_config = ConfigDict(extra="forbid", from_attributes=True)

    @classmethod
    def of(cls, value: object) -> Self:
        """Return the document of a value, field by field from the attributes of the same names."""
        return cls.model_validate(value)

    def as_json(self) -> dict[str, Any]:
        """Return it as ``json.dumps`` takes it."""
        return self.model_dump(mode="json")


_Item = TypeVar("_Item")


class Page(Document, Generic[_Item]):
    """A part of a list; ``next`` is the ``after`` of the part behind it, null at the end."""

    items: list[_Item]
    next: str | None


class UserDocument(Document):
    """A user; its password is never answered. With ``ldap`` it is not known here."""

    name: str
    admin: bool
    disabled: bool
    ldap: bool
    groups: list[str]


class GroupDocument(Document):
    """A group of users."""

    name: str
    members: list[str]


class StatedGrantDocument(Document):
    """A right of a subject, as a whole policy states it."""

    subject: str
    repository: str
    tags: str
    actions: Actions
    mode: GrantMode
    expires_at: Time | None


class GrantDocument(StatedGrantDocument):
    """A right of a subject."""

    id: str


class PolicyDocument(Document):
    """A whole policy: the members of every group, and every grant."""

    version: Literal[1]
    groups: dict[str, list[str]]
    grants: list[StatedGrantDocument]


class MembersDocument(Document):
    """The differences of a group's members."""

    added: list[str]
    removed: list[str]


class PolicyDifferenceDocument(Document):
    """The changes that another policy makes; all empty where it is the one in force."""

    groups_added: dict[str, list[str]]
    groups_removed: dict[str, list[str]]
    groups_changed: dict[str, MembersDocument]
    grants_added: list[StatedGrantDocument]
    grants_removed: list[GrantDocument]


class DecisionDocument(Document):
    """Whether something is allowed, and by which grant or for which reason."""

    allowed: bool
    would_deny: bool
    grant: str | None
    reason: str


class SubjectRevocationDocument(Document):
    """The bearer and refresh tokens that a subject had are revoked.

    ``secrets_deleted`` counts its personal tokens or robot secrets that were deleted with them, ``secrets_left`` those
    that are still accepted.
    """

    id: str
    subject: str
    generation: int
    secrets_deleted: int
    secrets_left: int


class TokenRevocationDocument(Document):
    """One token is void."""

    id: str
    token_id: str


class RevocationDocument(RootModel[SubjectRevocationDocument | TokenRevocationDocument]):
    """The credentials that were revoked."""


class RobotDocument(Document):
    """A robot: an account of a program."""

    name: str
    expires_at: Time | None
    networks: list[str]


class SecretDocument(Document):
    """A secret of a robot or user, without its text; with ``actions`` null it may do all that its holder may.

    ``state`` says whether a login with it is accepted.
    """

    id: str
    kind: SecretKind
    label: str
    created_at: Time
    expires_at: Time | None
    actions: list[Action] | None
    state: SecretState


class MeDocument(Document):
    """The caller: an administrator may do everything; all others do what the grants allow, theirs and everyone's."""

    subject: str
    admin: bool
    groups: list[str]
    grants: list[GrantDocument]


class NewSecretDocument(SecretDocument):
    """A secret that was just made: its text is never to be had again."""

    secret: str


class KeyDocument(Document):
    """The key that signs tokens from now on."""

    kid: str


class RepairDocument(Document):
    """Progress of the repair of one replica; ``done`` and ``failed`` count keys."""

    running: bool
    started_at: Time | None
    done: int
    failed: int
    error: str


class PauseDocument(Document):
    """The pause of a replica: why, by whom, since when.

    ``quiet`` once all writes to it have ended that began before: what reads its storage as a whole can begin then.
    """

    reason: str
    by: str
    since: Time
    quiet: bool


class ReplicaDocument(Document):
    """State of one replica; ``reason`` says why it is not up, "" when it is.

    It misses ``pending`` keys, and cannot have ``refused`` others.
    ``keeps_apart`` tells whether it answers for a content only in the repositories that hold it; null while unknown.
    ``paused`` is null where it is written to.
    """

    name: str
    url: str
    state: ReplicaState
    reason: str
    latency_seconds: float | None
    pending: int
    refused: int
    keeps_apart: bool | None
    paused: PauseDocument | None
    repair: RepairDocument


class UpstreamDocument(Document):
    """An upstream and its replicas; none of these has ``lost`` keys any more.

    ``warnings`` say what this node no longer keeps for a replica that misses it, and which pause may be forgotten.
    """

    name: str
    lost: int
    replicas: list[ReplicaDocument]
    warnings: list[str]


class ExceptionDocument(Document):
    """A manifest, tag or blob that cannot be everywhere: lost, or refused by the replicas named, and why."""

    repository: str
    kind: str
    name: str
    lost: bool
    refused: dict[str, str]
    dismissed: bool


class DismissalDocument(Document):
    """The number of exceptions that were dismissed."""

    dismissed: int


class ForgottenDocument(Document):
    """The number of lost contents that were forgotten."""

    forgotten: int


class DifferenceDocument(Document):
    """A replica does not hold what it shall; where ``replica`` is null none of them does, and it is lost."""

    repository: str
    kind: str
    name: str
    replica: str | None
    wanted: str | None
    found: str | None
    holders: list[str]


class FailureDocument(Document):
    """A replica that could not be asked for something, and why."""

    key: str
    replica: str
    reason: str


class ComparisonDocument(Document):
    """Progress and findings of a comparison of replicas; the lists hold the first thousand."""

    started_at: Time
    done: bool
    error: str
    repositories: int
    repositories_done: int
    manifests: int
    blobs: int
    differing: int
    undecided: int
    lost: int
    mended: int
    failed: int
    differences: list[DifferenceDocument]
    failures: list[FailureDocument]


class RepositoryDocument(Document):
    """A repository that is known; ``tags_on_record`` were pushed through the proxy, ``cached`` is of this node."""

    name: str
    upstream: str
    tags_on_record: int
    cached: bool


class CacheDocument(Document):
    """The cache of this node; requests and hit ratios by kind of content, a ratio null before the first request."""

    size_bytes: int
    max_size_bytes: int
    entries: int
    filling_bytes: int
    pinned_bytes: int
    requests: dict[str, dict[str, int]]
    hit_ratios: dict[str, float | None]


class CachedBlobDocument(Document):
    """One content of the cache."""

    digest: str
    size_bytes: int
    used_at: Time
    protected: bool


class CacheVerificationDocument(Document):
    """The digests of what was not what its digest says, and is in quarantine now."""

    bad: list[str]


class PurgeDocument(Document):
    """The number of entries that were removed."""

    removed: int


class WarmingDocument(Document):
    """Progress of the warming of an image; ``error`` is why it ended early, "" when it did not."""

    id: str
    image: str
    digest: str | None
    blobs_total: int
    blobs_done: int
    bytes_total: int
    bytes_done: int
    done: bool
    error: str


class ReloadDocument(Document):
    """The generation of the workers that serve with the configuration as it is now."""

    generation: int


class ChainFaultDocument(Document):
    """A place where the audit log is not what was written."""

    file: str
    line: int
    text: str


class AcceptedFaultDocument(ChainFaultDocument):
    """A fault that an administrator knows of, and does not count any more."""

    by: str
    at: Time
    reason: str


class ChainDocument(Document):
    """Findings in one chain of the audit log; ``unsigned`` counts the lines after the last signature.

    Retention has removed ``removed`` lines, all of them older than ``begins_at``, the time of the first one left.
    """

    process: str
    first: int
    last: int
    begins_at: Time | None
    removed: int
    signed_at: Time | None
    unsigned: int
    faults: list[ChainFaultDocument]
    accepted: list[AcceptedFaultDocument]


class OtherNodeDocument(Document):
    """Another node whose log was signed into the store, last at this time; only there it can be verified."""

    node: str
    signed_at: Time | None


class AuditVerificationDocument(Document):
    """Whether the audit log of this node is as it was written, but for accepted faults and what retention removed.

    ``elsewhere`` are the nodes whose log is not here.
    """

    intact: bool
    processes: list[ChainDocument]
    elsewhere: list[OtherNodeDocument]


class QuestionDocument(Document):
    """A question that another policy would answer otherwise; the grant is the one that allows it, today or then."""

    subject: str
    repository: str
    tag: str | None
    action: Action
    count: int
    first_at: Time
    last_at: Time
    grant: str | None
    reason: str


class ReplayDocument(Document):
    """The answers of a proposed policy to the latest questions."""

    decisions: int
    since: Time | None
    newly_denied: list[QuestionDocument]
    newly_allowed: list[QuestionDocument]
    subjects_newly_denied: list[str]
    subjects_newly_allowed: list[str]


class OpenApiDocument(RootModel[dict[str, Any]]):
    """An OpenAPI 3.1 document."""


class AuditPage(Page[dict[str, Any]]):
    """Events of the audit log, oldest first; fields that say nothing are absent."""


class FaultDocument(Document):
    """One thing that is wrong; ``pointer`` leads into the body (RFC 6901, section 6), "" when it is elsewhere."""

    pointer: str
    detail: str


class ProblemDocument(Document):
    """Why a request was not done (RFC 9457); ``errors`` has everything that is wrong with it."""

    type: Literal["about:blank"]
    title: str
    status: int
    detail: str
    errors: list[FaultDocument] = Field(default_factory=list, min_length=1)
