"""An acknowledged change by an administrator is in the audit log, whatever happens to the node afterwards.

Reports: "the node was killed a second after a grant was made: the grant is there, and nobody knows who made it".
"""

from tests.conftest import StartProxy, StartRegistry


def test_an_acknowledged_change_is_in_the_audit_log(start_registry: StartRegistry, start_proxy: StartProxy) -> None:
    """All processes of the node are killed right after the answer."""
    proxy = start_proxy([start_registry()])
    with proxy.admin() as admin:
        grant = {"subject": "anonymous", "repository": "pub/**", "actions": ["pull"]}
        made = admin.post("/grants", json=grant).raise_for_status().json()["id"]
        proxy.kill_everything()
    logs = [file for file in proxy.root.rglob("*") if file.is_file() and "audit" in str(file)]
    assert any(f'"id":"{made}"' in file.read_text(errors="replace") for file in logs), logs
