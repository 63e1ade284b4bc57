"""After a restore from the documented backup the tools report a good state.

Reports: "after the restore `replica verify` failed for ever, because of images that we had deleted since the backup",
"after the restore on a new machine `audit verify` is red for ever, and nobody looks at it any more".
"""

import shutil
from pathlib import Path

from typer.testing import CliRunner

from registry_proxy.cli.main import app
from tests.conftest import StartProxy
from tests.support.product import make_image
from tests.support.servers import Server, free_port


def offline(*arguments: str) -> None:
    """Run a command that needs no running node."""
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output


def test_images_deleted_since_a_backup_can_be_forgotten(registries: list[Server], start_proxy: StartProxy) -> None:
    """`verify` names the possible cause and the command, and succeeds after it; all other images are untouched."""
    proxy = start_proxy(registries)
    ann, images = proxy.add_user("ann", pull_push=["**"], delete=["**"]), [make_image(b"kept"), make_image(b"gone")]
    for tag, image in zip(("kept", "gone"), images, strict=True):
        ann.push("team/app", tag, image)
    backup = str(proxy.root / "backup")
    offline("backup", backup, "--config", str(proxy.config))
    with ann.client("team/app", "delete") as client:
        client.delete(f"/manifests/{images[1].digest}").raise_for_status()
    proxy.stop()
    offline("restore", backup, "--replace", "--config", str(proxy.config))
    proxy.start()
    failed = proxy.command("replica", "verify")
    assert failed.exit_code == 1, failed.output
    assert "Deleted since the backup that was restored? `registry-proxy replica forget`" in " ".join(
        failed.stderr.split()
    )
    asked = proxy.command("replica", "forget", "main", "--all")
    assert (asked.exit_code, "lost content of main?" in asked.stderr) == (1, True)
    forgotten = proxy.command("replica", "forget", "main", "--all", "--yes")
    assert (forgotten.exit_code, "0 lost" in forgotten.stderr) == (0, False), forgotten.output
    again = proxy.command("replica", "verify")
    assert (again.exit_code, "no difference found" in again.stderr) == (0, True), again.output
    assert ann.pull("team/app", "kept") == images[0]
    assert ann.get("team/app", "manifests/gone").status_code == 404
    assert proxy.metric("registry_proxy_lost_contents", upstream="main") == 0


def test_a_log_that_was_lost_with_its_key_is_accepted_once(start_proxy: StartProxy, tmp_path: Path) -> None:
    """The break is reported until an administrator accepts it with a reason; then it is listed apart."""
    proxy = start_proxy([Server([], free_port(), tmp_path / "log")])
    proxy.add_user("ann")
    proxy.stop()
    backup = str(proxy.root / "backup")
    offline("backup", backup, "--config", str(proxy.config))
    shutil.rmtree(proxy.audit)
    shutil.rmtree(proxy.cache)
    for lost in (proxy.root / "token-key.pem", *proxy.root.glob("store.db*")):
        if lost.is_dir():  # the keys of leases
            shutil.rmtree(lost)
        else:
            lost.unlink()
    offline("restore", backup, "--config", str(proxy.config))
    proxy.start()
    broken = proxy.command("audit", "verify")
    assert (broken.exit_code, "not signed with a key of this registry" in broken.stderr) == (1, True), broken.output
    assert "registry-proxy audit accept --reason" in broken.stderr
    asked = proxy.command("audit", "accept", "--reason", "restored after a fire")
    assert (asked.exit_code, "Accept 1 fault?" in asked.stderr) == (1, True), asked.output
    accepted = proxy.command("audit", "accept", "--reason", "restored after a fire", "--yes")
    assert (accepted.exit_code, "1 fault" in accepted.stderr) == (0, True), accepted.output
    verified = proxy.command("audit", "verify")
    assert (verified.exit_code, "accepted by user:admin at" in verified.stderr) == (0, True), verified.output
    assert "restored after a fire" in verified.stderr
    nothing = proxy.command("audit", "accept", "--reason", "again", "--yes")
    assert (nothing.exit_code, "nothing to accept" in nothing.stderr) == (1, True), nothing.output
    found = proxy.command("audit", "search", "--action", "audit.accept", "--outcome", "ok", "--json").stdout
    assert ("restored after a fire" in found, "not signed with a key" in found) == (True, True)
    (log,) = proxy.audit.glob("0-*.jsonl")
    log.write_bytes(log.read_bytes().replace(b"after a fire", b"after a fine"))
    again = proxy.command("audit", "verify")
    assert (again.exit_code, "was changed" in again.stderr) == (1, True), again.output
