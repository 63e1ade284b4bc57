"""A restore from the documented backup ends in a state that the tools call right.

Reports: "after the restore `replica verify` failed for ever, because of images that we had deleted since the backup".
"""

from typer.testing import CliRunner

from registry_proxy.cli.main import app
from tests.conftest import StartProxy
from tests.product import make_image
from tests.servers import Server


def offline(*arguments: str) -> None:
    """Run a command that needs no running node."""
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output


def test_what_was_deleted_since_a_backup_can_be_forgotten(registries: list[Server], start_proxy: StartProxy) -> None:
    """`verify` says what it may be and how to forget it, and is content then; all other images are untouched."""
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
