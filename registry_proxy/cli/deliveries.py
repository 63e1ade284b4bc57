"""`registry-proxy event`: deliveries of events, listed, replayed and tested."""

from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from registry_proxy.cli.subscriptions import SubscriptionName
from registry_proxy.terminal.client import AdminClient, admin_client, given
from registry_proxy.terminal.errors import CommandError
from registry_proxy.terminal.output import (
    JsonOption,
    YesOption,
    confirm,
    counted,
    print_facts,
    print_note,
    print_object,
    print_result,
    print_table,
    printed_json,
    spinner,
)

event_app = typer.Typer(help="Events on their way to the receivers of subscriptions.", no_args_is_help=True)

_COLUMNS = (
    "id",
    "subscription",
    "type",
    "repository",
    "tag",
    "number",
    "state",
    "attempts",
    ("last_status", "STATUS"),
    "next_attempt_at",
    "reason",
)
_REASON_MAX = 60


def _flat(delivery: Mapping[str, Any]) -> dict[str, Any]:
    """Return a delivery with the fields of its event beside its own; those of the same name are the delivery's."""
    event = dict(delivery["event"])
    if isinstance(event.get("at"), int | float):
        event["at"] = f"{datetime.fromtimestamp(event['at'], UTC):%Y-%m-%dT%H:%M:%SZ}"
    return {**delivery, "event": event.pop("id"), **{key: event[key] for key in event if key not in delivery}}


def _row(delivery: Mapping[str, Any], disabled: Collection[str]) -> dict[str, Any]:
    """Return a delivery as a row, with the reason of its last failure; a disabled subscription has no next attempt."""
    row = _flat(delivery)
    if row["state"] != "delivered" and (reason := " ".join(row["last_answer"].split())):
        row["reason"] = reason if len(reason) <= _REASON_MAX else f"{reason[:_REASON_MAX]}…"
    if row["subscription"] in disabled:
        row["next_attempt_at"] = None
    return row


def _find(admin: AdminClient, text: str) -> dict[str, Any]:
    """Return a delivery by its id, or by that of its event. Raises CommandError."""
    try:
        return admin.call("GET", "deliveries", text).document
    except CommandError:
        found = [each for each in admin.list_all("deliveries") if each["event"]["id"] == text]
        if not found:
            raise
    if len(found) > 1:
        lines = [f"{each['id']} to {each['subscription']}, {each['state']}" for each in found]
        raise CommandError(f"The event {text} has several deliveries", faults=lines, hint="Name one of them.")
    return found[0]


@event_app.command("list")
def list_deliveries(
    subscription: Annotated[str | None, typer.Option(help="Only those of this subscription.")] = None,
    state: Annotated[str | None, typer.Option(help="Only queued, delivered or dead ones.")] = None,
    _json: JsonOption = False,
) -> None:
    """List deliveries: queued, delivered lately, and dead letters."""
    with admin_client() as admin:
        if subscription is not None:
            admin.call("GET", "subscriptions", subscription)  # a mistyped name has no deliveries either
        found = admin.list_all("deliveries", query=given(subscription=subscription, state=state))
        found.sort(key=lambda each: (each["subscription"], each["event"].get("repository", ""), each["number"]))
        if not printed_json(found):
            disabled = {each["name"] for each in admin.list_all("subscriptions") if not each["enabled"]}
            print_table(_COLUMNS, [_row(each, disabled) for each in found], empty="There are no deliveries.")


@event_app.command("show")
def show_delivery(
    delivery: Annotated[
        str, typer.Argument(metavar="ID", help="The delivery, from `event list`, or its event.", show_default=False)
    ],
    _json: JsonOption = False,
) -> None:
    """Show one delivery, with the event and the receiver's last answer."""
    with admin_client() as admin:
        document = _find(admin, delivery)
        if not printed_json(document):
            print_facts(_flat(document))


@event_app.command("replay")
def replay_deliveries(
    delivery: Annotated[str | None, typer.Argument(metavar="ID", help="The delivery, from `event list`.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All dead letters of a subscription.")] = False,
    subscription: Annotated[str | None, typer.Option(help="The subscription of --all.")] = None,
    _json: JsonOption = False,
) -> None:
    """Send an event again, or all dead letters of a subscription; each is marked as a replay."""
    _check_choice(delivery, subscription, everything=everything)
    with admin_client() as admin:
        if delivery is not None:
            _replay_one(admin, delivery)
        elif subscription is not None:
            number = _replay_dead(admin, subscription)
            note = f"{counted(number, 'dead letter', 'are queued')} again for {subscription}."
            print_result({"subscription": subscription, "replayed": number}, note)


@event_app.command("dismiss")
def dismiss_deliveries(
    delivery: Annotated[str | None, typer.Argument(metavar="ID", help="The dead letter, from `event list`.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All dead letters of a subscription.")] = False,
    subscription: Annotated[str | None, typer.Option(help="The subscription of --all.")] = None,
    yes: YesOption = False,
    _json: JsonOption = False,
) -> None:
    """Remove a dead letter, or all of a subscription, without sending it again; --all asks first."""
    _check_choice(delivery, subscription, everything=everything)
    with admin_client() as admin:
        if delivery is not None:
            admin.call("DELETE", "deliveries", delivery)
            print_result({"dismissed": 1}, "The dead letter is dismissed.")
        elif subscription is not None:
            query = {"subscription": subscription, "state": "dead"}
            admin.call("GET", "subscriptions", subscription)
            dead = admin.list_all("deliveries", query=query)
            if dead:
                confirm(f"Dismiss {counted(len(dead), 'dead letter')} of {subscription}?", yes=yes)
            for each in dead:
                admin.call("DELETE", "deliveries", each["id"])
            note = f"{counted(len(dead), 'dead letter', 'are dismissed')} of {subscription}."
            print_result({"subscription": subscription, "dismissed": len(dead)}, note)


def _check_choice(delivery: str | None, subscription: str | None, *, everything: bool) -> None:
    if everything != (delivery is None) or everything != (subscription is not None):
        raise typer.BadParameter("name a delivery by its ID, or give --all --subscription NAME")


def _replay_one(admin: AdminClient, delivery: str) -> None:
    before = admin.call("POST", "deliveries", delivery, "replay", body={}).document
    name = before["subscription"]
    if before["state"] == "queued":
        print_note(f"The event is still queued for {name}: it goes by itself, and nothing was changed.")
    else:
        print_note(f"The event is queued again for {name}, marked as a replay.")
    printed_json(before)


def _replay_dead(admin: AdminClient, subscription: str) -> int:
    admin.call("GET", "subscriptions", subscription)
    number = 0
    with spinner(f"Queueing the dead letters of {subscription}…"):
        while dead := admin.list_all("deliveries", query={"subscription": subscription, "state": "dead"}):
            for each in dead:
                admin.call("POST", "deliveries", each["id"], "replay", body={})
            number += len(dead)
    return number


@event_app.command("test")
def try_receiver(name: SubscriptionName, _json: JsonOption = False) -> None:
    """Queue an event that is a test, whatever types and repositories the subscription takes."""
    with admin_client() as admin:
        queued = admin.call("POST", "subscriptions", name, "test", body={}).document
        subscription = admin.call("GET", "subscriptions", name).document
        print_note(f"A test is queued for {name}. See what came of it: registry-proxy event list --subscription {name}")
        if not subscription["enabled"]:
            print_note(
                f"warning: {name} is disabled, so the test waits: registry-proxy subscription set {name} --enable"
            )
        print_object(queued)
