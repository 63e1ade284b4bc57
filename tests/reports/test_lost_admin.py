"""The password of the last administrator is not the end of a deployment.

Reports: "our admin left, the variable was ignored without a word, and the only way back was to delete the store".
"""

import httpx
from typer.testing import CliRunner, Result

from registry_proxy.cli.main import app
from tests.conftest import StartProxy, StartRegistry
from tests.support.product import ADMIN_PASSWORD, Proxy

NEW = "a new password of the admin"


def reset(proxy: Proxy, *arguments: str, stdin: str = "") -> Result:
    """Run `admin reset` with the configuration of a node."""
    return CliRunner().invoke(app, ["admin", "reset", "--config", str(proxy.config), *arguments], input=stdin)


def status(proxy: Proxy, name: str, password: str) -> int:
    """Return the status of the admin API for a login that lists users."""
    return httpx.get(f"{proxy.admin_url}/admin/v1/users", auth=(name, password), verify=False).status_code


def test_an_administrator_gets_a_new_password(start_registry: StartRegistry, start_proxy: StartProxy) -> None:
    """On a running node it is in force immediately, and the old one ends; another user can become an administrator."""
    proxy = start_proxy([start_registry()])
    assert (status(proxy, "admin", ADMIN_PASSWORD), status(proxy, "admin", NEW)) == (200, 401)
    made = reset(proxy, "--password-stdin", stdin=NEW)
    assert (made.exit_code, made.stdout) == (0, ""), made.output
    assert f"admin is an administrator with a new password in {proxy.root / 'store.db'}." in made.stderr
    assert (status(proxy, "admin", ADMIN_PASSWORD), status(proxy, "admin", NEW)) == (401, 200)
    generated = reset(proxy, "--user", "eve")
    assert "eve is made, an administrator" in generated.stderr
    assert status(proxy, "eve", generated.stdout.strip()) == 200
    for arguments, stdin in ((("--password-stdin",), "short"), (("--user", "a:b"), "")):
        refused = reset(proxy, *arguments, stdin=stdin)
        assert (refused.exit_code, "is not reset" in refused.stderr) == (1, True)
    (proxy.root / "store.db").rename(proxy.root / "moved.db")
    assert (reset(proxy).exit_code, (proxy.root / "store.db").exists()) == (1, False)


def test_a_variable_without_effect_is_warned_of(start_registry: StartRegistry, start_proxy: StartProxy) -> None:
    """A start with REGISTRY_PROXY_ADMIN_PASSWORD warns where it is not the administrator's, and only then."""
    proxy = start_proxy([start_registry()])
    for password, is_warned in ((ADMIN_PASSWORD, False), (NEW, True)):
        proxy.stop()
        proxy.environment = {"REGISTRY_PROXY_ADMIN_PASSWORD": password}
        before = len(proxy.log_text())
        proxy.start()
        log = proxy.log_text()[before:]
        assert ("REGISTRY_PROXY_ADMIN_PASSWORD has no effect" in log) == is_warned
        assert password not in log
