"""The admin API as commands of `registry-proxy`."""

import typer

from registry_proxy.cli.access import access_app
from registry_proxy.cli.audit import audit_app
from registry_proxy.cli.backup import backup, restore
from registry_proxy.cli.grants import explain, grant_app
from registry_proxy.cli.identities import group_app, user_app
from registry_proxy.cli.login import login, logout
from registry_proxy.cli.node import cache_app, reload_configuration, replica_app, show_openapi
from registry_proxy.cli.repositories import repository_app
from registry_proxy.cli.robots import key_app, robot_app, token_app


def register(app: typer.Typer) -> None:
    """Add the admin commands to the program."""
    app.command("login")(login)
    app.command("logout")(logout)
    app.add_typer(user_app, name="user")
    app.add_typer(group_app, name="group")
    app.add_typer(robot_app, name="robot")
    app.add_typer(grant_app, name="grant")
    app.command("explain")(explain)
    app.add_typer(access_app, name="access")
    app.add_typer(token_app, name="token")
    app.add_typer(key_app, name="key")
    app.add_typer(replica_app, name="replica")
    app.add_typer(repository_app, name="repository")
    app.add_typer(cache_app, name="cache")
    app.add_typer(audit_app, name="audit")
    app.command("reload")(reload_configuration)
    app.command("openapi")(show_openapi)
    app.command("backup")(backup)
    app.command("restore")(restore)
