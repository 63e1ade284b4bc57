"""The judgement of images by a rule: pure, all violations at once, each with a way to repair it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from registry_proxy.ports.rules import Condition
from registry_proxy.rules.floors import SCRATCH, Floor, matches_base
from registry_proxy.rules.image import ImageConfig, JudgedImage
from registry_proxy.rules.rule import Rule, matches_any

_SHOWN_MAX = 200


@dataclass(frozen=True, slots=True)
class Violation:
    """A rule that is violated: which condition, why, and what to do.

    ``hidden`` is for the log alone: names of repositories that the client may not see.
    """

    rule: Rule
    condition: Condition
    reason: str
    remedy: str
    hidden: str = ""

    def __str__(self) -> str:
        advice = f" {self.rule.advice}" if self.rule.advice else ""
        return f"rule {self.rule.name}, {self.condition.value}: {self.reason}; {self.remedy}.{advice}"


def violations_of(rule: Rule, images: Sequence[JudgedImage], now: float) -> Iterator[Violation]:
    """Give the violations of a rule by the images of a manifest, each that is repaired in the same way once.

    Args:
        rule: all its conditions but immutability.
        images: that of a manifest, or those of an index.
        now: seconds since the epoch.
    """
    seen = set[str]()
    for image in images:
        for found in _violations(rule, image, now):
            if found.remedy not in seen:
                seen.add(found.remedy)
                yield found


def _violations(rule: Rule, image: JudgedImage, now: float) -> Iterator[Violation]:
    if image.fault:
        remedy = "push all manifests of an index before it, and no configuration of more than 1 MiB"
        yield Violation(rule, Condition.READABLE, image.fault, remedy)
        return
    yield from _violations_of_manifest(rule, image)
    if image.is_image:
        yield from _violations_of_labels(rule, image)
        if image.config is not None:
            yield from _violations_of_config(rule, image.config, now)
            if image.floors is not None and rule.reads_floors:
                yield from _violations_of_floors(rule, image, image.config, image.floors)


def _violations_of_manifest(rule: Rule, image: JudgedImage) -> Iterator[Violation]:
    if rule.max_size_bytes is not None and image.size_bytes > rule.max_size_bytes:
        reason = f"the image has {image.size_bytes} bytes, more than {rule.max_size_bytes}"
        yield Violation(rule, Condition.MAX_SIZE, reason, "leave out what it does not need, or build it in stages")
    if rule.max_layers is not None and image.layer_count > rule.max_layers:
        reason = f"the image has {image.layer_count} layers, more than {rule.max_layers}"
        yield Violation(rule, Condition.MAX_LAYERS, reason, "join commands of the Dockerfile, or build it in stages")
    if rule.media_types:
        others = [each for each in image.media_types if not matches_any(rule.media_types, each)]
        if others:
            reason = f"the media type {_shown(others[0])} is not allowed here"
            yield Violation(rule, Condition.MEDIA_TYPES, reason, f"allowed are {_listed(rule.media_types)}")


def _violations_of_labels(rule: Rule, image: JudgedImage) -> Iterator[Violation]:
    labels = image.labels
    for name, pattern in rule.labels.items():
        if name not in labels:
            reason = f"the label {name} is missing"
        elif not matches_any([pattern], labels[name]):
            reason = f"the label {name} is '{_shown(labels[name])}', which does not match '{pattern}'"
        else:
            continue
        remedy = f"build with --label {name}={pattern if '*' not in pattern else 'VALUE'}"
        yield Violation(rule, Condition.LABELS, reason, remedy)


def _violations_of_config(rule: Rule, config: ImageConfig, now: float) -> Iterator[Violation]:
    if rule.platforms and not matches_any(rule.platforms, config.platform):
        reason = f"the platform {_shown(config.platform) or 'that is not stated'} is not allowed here"
        remedy = f"build with --platform for one of {_listed(rule.platforms)}"
        yield Violation(rule, Condition.PLATFORMS, reason, remedy)
    if rule.not_root and is_root(config.user):
        remedy = "name another user with USER in the Dockerfile"
        yield Violation(rule, Condition.NOT_ROOT, "the image runs as root", remedy)
    if rule.max_age_seconds is not None:
        if config.created_at is None:
            reason = "the image does not say when it was created"
        elif now - config.created_at > rule.max_age_seconds:
            reason = f"the image was created {_days(now - config.created_at)} ago, before {_days(rule.max_age_seconds)}"
        else:
            return
        yield Violation(rule, Condition.MAX_AGE, reason, "build it anew")


def _violations_of_floors(
    rule: Rule, image: JudgedImage, config: ImageConfig, floors: Sequence[Floor]
) -> Iterator[Violation]:
    if len(config.diff_ids) != image.layer_count:
        reason = "the configuration does not name as many layers (rootfs.diff_ids) as the manifest"
        yield Violation(rule, Condition.READABLE, reason, "build it with docker, buildah or another usual program")
        return
    if rule.bases:
        nearest = floors[-1].names if floors else ()
        is_allowed = any(matches_base(rule.bases, name) for name in nearest) if floors else SCRATCH in rule.bases
        if not is_allowed:
            found = f"on another image up to layer {floors[-1].layer_count}" if floors else "on no known base"
            remedy = f"build FROM one of {_listed(rule.bases)}"
            yield Violation(rule, Condition.BASES, f"the image stands {found}", remedy, _stack(floors[-1:]))
    below = [floor for floor in floors if floor.layer_count < image.layer_count]
    if rule.max_floors is not None and len(below) + 1 > rule.max_floors:
        ends = ", ".join(str(floor.layer_count) for floor in below)
        reason = f"the image is floor {len(below) + 1}: others end at layer {ends}; {rule.max_floors} are allowed"
        remedy = "build FROM an image further below"
        yield Violation(rule, Condition.MAX_FLOORS, reason, remedy, _stack(below))


def _stack(floors: Sequence[Floor]) -> str:
    return " on ".join(_shown(floor.names[0]) for floor in reversed(floors))


def is_root(user: str) -> bool:
    """Tell whether containers run as root by the user of an image, such as ``app``, ``10001:10001`` or ``0``.

    A name that only the image's own list of users makes root is not found.
    """
    name = user.partition(":")[0].strip()
    try:
        return int(name) == 0
    except ValueError:
        return name in {"", "root"}


def _days(seconds: float) -> str:
    return f"{seconds / 86_400:.1f} days"


def _shown(text: str) -> str:
    """Return foreign text that a terminal can show."""
    return "".join(each if each.isprintable() else "?" for each in text[:_SHOWN_MAX])


def _listed(texts: Sequence[str]) -> str:
    return ", ".join(texts)
