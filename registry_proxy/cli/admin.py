"""The admin API as commands of `registry-proxy`."""

from typing import Any

import typer
from typer.core import TyperGroup

from registry_proxy.cli.audit import audit_app
from registry_proxy.cli.backup import backup, restore
from registry_proxy.cli.cache import cache_app
from registry_proxy.cli.deliveries import event_app
from registry_proxy.cli.deployments import deployment_app
from registry_proxy.cli.grants import explain, grant_app
from registry_proxy.cli.groups import group_app
from registry_proxy.cli.importing import import_
from registry_proxy.cli.keys import key_app
from registry_proxy.cli.login import login, logout
from registry_proxy.cli.manifests import manifest_app
from registry_proxy.cli.me import change_password, whoami
from registry_proxy.cli.node import reload_configuration, show_openapi
from registry_proxy.cli.policy import policy_app
from registry_proxy.cli.repositories import repository_app
from registry_proxy.cli.reset import reset_app
from registry_proxy.cli.robots import robot_app
from registry_proxy.cli.rules import rule_app
from registry_proxy.cli.subscriptions import subscription_app
from registry_proxy.cli.tags import tag_app
from registry_proxy.cli.tokens import token_app
from registry_proxy.cli.upstreams import replica_app
from registry_proxy.cli.users import user_app
from registry_proxy.terminal.errors import CommandError
from registry_proxy.terminal.output import print_error


class Commands(TyperGroup):
    """Commands under one name; the error for an unknown command lists the known ones, and a CommandError is printed."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that is meant."""
        try:
            return super().invoke(ctx)
        except CommandError as error:
            print_error(error)
            raise typer.Exit(error.status) from error

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command that is meant. Ends with 2 when there is none."""
        name = args[0]
        if name not in self.commands and not name.startswith("-") and not ctx.resilient_parsing:
            groups: dict[str, Any] = ctx.find_root().command.commands
            named = [f"{group} {name}" for group, each in groups.items() if name in getattr(each, "commands", ())]
            elsewhere = ", ".join(map(repr, named))
            if ctx.parent is not None:
                here = ", ".join(map(repr, self.commands))
                ctx.fail(f"No such command {name!r}. There are {here}{elsewhere and f'; elsewhere {elsewhere}'}.")
            if elsewhere:
                ctx.fail(f"No such command {name!r}. Did you mean {elsewhere}?")
        return super().resolve_command(ctx, args)


def register(app: typer.Typer) -> None:
    """Add the admin commands to the program."""
    app.command("login")(login)
    app.command("logout")(logout)
    app.command("whoami")(whoami)
    app.command("password")(change_password)
    app.add_typer(user_app, name="user", cls=Commands)
    app.add_typer(group_app, name="group", cls=Commands)
    app.add_typer(robot_app, name="robot", cls=Commands)
    app.add_typer(grant_app, name="grant", cls=Commands)
    app.command("explain")(explain)
    app.add_typer(policy_app, name="access", cls=Commands)
    app.add_typer(token_app, name="token", cls=Commands)
    app.add_typer(key_app, name="key", cls=Commands)
    app.add_typer(replica_app, name="replica", cls=Commands)
    app.add_typer(rule_app, name="rule", cls=Commands)
    app.add_typer(subscription_app, name="subscription", cls=Commands)
    app.add_typer(event_app, name="event", cls=Commands)
    app.add_typer(tag_app, name="tag", cls=Commands)
    app.add_typer(manifest_app, name="manifest", cls=Commands)
    app.add_typer(deployment_app, name="deployment", cls=Commands)
    app.add_typer(repository_app, name="repository", cls=Commands)
    app.add_typer(cache_app, name="cache", cls=Commands)
    app.add_typer(audit_app, name="audit", cls=Commands)
    app.command("reload")(reload_configuration)
    app.command("openapi")(show_openapi)
    app.add_typer(reset_app, name="admin", cls=Commands)
    app.command("import")(import_)
    app.command("backup")(backup)
    app.command("restore")(restore)
