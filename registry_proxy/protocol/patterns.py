r"""Patterns of repositories and tags, compiled to regular expressions that cannot run away.

Repository: ``*`` is one component or a part of one, ``**`` any number of components; at the end, at least one
(``team/**`` is not ``team``). In grants ``{subject}`` is one component, the name of the user who asks. Tag: ``*`` is
any text.

A name comes from the caller, so matching must stay linear in it. Each wildcard takes the shortest text after which
the next fixed piece fits, and never tries again: ``(?>...)``. For wildcards that is enough, because a later place
can only leave less for the rest.
"""

import functools
import re
from itertools import pairwise

from registry_proxy.protocol.reference import REPOSITORY_MAX_LENGTH, is_repository

_REPOSITORY_PATTERN = re.compile(r"[a-z0-9._*-]+(?:/[a-z0-9._*-]+)*")
_TAG_PATTERN = re.compile(r"[A-Za-z0-9_.*-]{1,128}")
_REMEMBERED = 50_000  # patterns: a change of one grant makes a new policy of all, and compiles that one alone

SUBJECT = "{subject}"


def repository_pattern_fault(pattern: str, *, takes_subject: bool = False) -> str | None:
    """Return the fault of a repository pattern, in words for its author; None when it is right."""
    if takes_subject:
        pattern = "/".join("subject" if component == SUBJECT else component for component in pattern.split("/"))
        if SUBJECT in pattern:
            return f"'{SUBJECT}' stands for a whole component: write 'home/{SUBJECT}/**'"
    if pattern.endswith("/") and _REPOSITORY_PATTERN.fullmatch(pattern[:-1]) is not None:
        return f"no repository ends with '/': write '{pattern}**' for all below it"
    if len(pattern) > REPOSITORY_MAX_LENGTH or _REPOSITORY_PATTERN.fullmatch(pattern) is None:
        return (
            "expected components of lower-case letters, digits, '.', '_', '-' and '*', separated by single '/', "
            f"at most {REPOSITORY_MAX_LENGTH} characters"
        )
    for component in pattern.split("/"):
        if ".." in component or not ("*" in component or is_repository(component)):
            return f"no repository has a component such as '{component}'"
    if any("**" in component and component != "**" for component in pattern.split("/")):
        return "'**' stands for whole components: write 'team/**', not 'team**'"
    return None


def tag_pattern_fault(pattern: str) -> str | None:
    """Return what is wrong with a tag pattern; None when it is right."""
    if _TAG_PATTERN.fullmatch(pattern) is None:
        return "expected letters, digits, '_', '.', '-' and '*', at most 128 characters"
    return None


def namespace_fault(pattern: str) -> str | None:
    """Return why a repository pattern is no namespace, which is all below some components, ``team/**``; None if it is.

    One of the components may be ``{subject}``.
    """
    *components, last = pattern.split("/")
    if last != "**" or not components or any("*" in component for component in components):
        return "expected all below a namespace, without another wildcard: write 'team/**'"
    return None


def is_below(pattern: str, namespace: str) -> bool:
    """Tell whether a repository pattern matches nothing but what lies in a namespace, such as ``team/**``."""
    return pattern.startswith(namespace.removesuffix("**"))


def literal_prefix(pattern: str) -> str:
    """Return the leading components of a repository pattern that are the same in all names; ``""`` for none."""
    literal = []
    for component in pattern.split("/"):
        if "*" in component or component == SUBJECT:
            break
        literal.append(component)
    return "/".join(literal)


def may_match_below(pattern: str, prefix: str) -> bool:
    """Tell whether some repository whose name begins with a prefix, such as ``team/`` or ``""``, matches a pattern."""
    components, beginning = pattern.split("/"), prefix.split("/")[:-1]
    for component, name in zip(components, beginning, strict=False):
        if component == "**":
            return True
        if re.fullmatch(_component(component), name) is None:
            return False
    return len(components) > len(beginning)


def literal_last(pattern: str) -> str | None:
    """Return the last component of a repository pattern where it is that of all names that match; None if not."""
    last = pattern.rpartition("/")[2]
    return None if "*" in last or last == SUBJECT else last


@functools.lru_cache(maxsize=_REMEMBERED)
def compile_repository_pattern(pattern: str) -> re.Pattern[str]:
    """Return an expression whose ``fullmatch`` tells whether a repository name matches."""
    components = pattern.split("/")
    # Several ** in a row mean what one means.
    components = [a for a, b in pairwise([*components, ""]) if not (a == "**" and b == "**")]
    if components == ["**"]:
        return re.compile(r".+")
    open_ended = components[-1] == "**"
    segments: list[list[str]] = [[]]
    for component in components[:-1] if open_ended else components:
        if component == "**":
            segments.append([])
        else:
            segments[-1].append(_component(component))
    parts = ["".join(f"{component}/" for component in segments[0])]
    parts += [f"(?>(?:[^/]+/)*?{''.join(f'{component}/' for component in segment)})" for segment in segments[1:]]
    if not open_ended:
        # The last segment stands at the end of the name: any number of components before it, tried from the right.
        last = "/".join(segments[-1])
        parts[-1] = last if len(segments) == 1 else f"(?:.*/)?{last}"
        return re.compile("".join(parts))
    return re.compile("".join(parts) + ".+")


def for_subject(pattern: str, name: str) -> str | None:
    """Return a pattern with a user's name in the place of ``{subject}``; None when no component can be so named."""
    return pattern.replace(SUBJECT, name) if is_repository(name) and "/" not in name else None


@functools.lru_cache(maxsize=_REMEMBERED)
def compile_text_pattern(pattern: str) -> re.Pattern[str]:
    """Return an expression whose ``fullmatch`` tells whether a text, such as a tag or claim, matches; ``*`` is any."""
    return re.compile(_wildcards(pattern, "."))


def _component(pattern: str) -> str:
    return r"[^/]+" if pattern == "*" else _wildcards(pattern, r"[^/]")


def _wildcards(pattern: str, character: str) -> str:
    first, *rest = (re.escape(piece) for piece in re.split(r"\*+", pattern))
    if not rest:
        return first
    *middle, last = rest
    taken = "".join(f"(?>{character}*?{piece})" for piece in middle)
    # The last piece must stand at the end, so its wildcard takes all and gives back no more than that piece.
    return f"{first}{taken}{character}*{last}" if last else f"{first}{taken}{character}*"
