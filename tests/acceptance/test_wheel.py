"""The wheel and the archive of the source: complete, nothing of the tests in them, and the commands run."""

import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.acceptance
_ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the archive of the source, and from it the wheel, without network; return their directory."""
    target = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(target), str(_ROOT))
    return target


def run(*command: str) -> str:
    """Run a program; fail with its output when it fails, else return that."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, done.stdout
    return done.stdout


def version() -> str:
    """Return the version in pyproject.toml, where it is written."""
    return str(tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]["version"])


def test_the_wheel_holds_the_package_alone(built: Path) -> None:
    """Every module of the package is in the wheel, with the mark that it has types, and nothing else."""
    [wheel] = built.glob("*.whl")
    assert wheel.name == f"registry_proxy-{version()}-py3-none-any.whl"
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    modules = {str(path.relative_to(_ROOT)) for path in (_ROOT / "registry_proxy").rglob("*.py")}
    assert held == {*modules, "registry_proxy/py.typed"}


def test_the_archive_holds_what_an_operator_needs(built: Path) -> None:
    """Locked dependencies, configurations, units and documents are in the archive; tests are not."""
    [archive] = built.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        held = {name.partition("/")[2] for name in tar.getnames()}
    assert held >= {
        "CHANGELOG.md",
        "LICENSE",
        "config/example.yaml",
        "docs/operations.md",
        "nginx/tls.conf",
        "packaging/systemd/registry-proxy.service",
        "requirements.lock",
    }
    assert [name for name in held if name.startswith(("tests", "benchmarks", "scripts", "var"))] == []


def test_the_command_runs_from_the_wheel(built: Path, tmp_path: Path) -> None:
    """In an environment with the wheel and its dependencies, the command has the version and checks a configuration."""
    environment = tmp_path / "environment"
    run(sys.executable, "-m", "venv", "--without-pip", str(environment))
    python, [wheel] = environment / "bin" / "python", built.glob("*.whl")
    [packages] = environment.glob("lib/python3*/site-packages")
    run(sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-index", "--no-deps", str(wheel))
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))  # its .pth files have no effect here
    command = str(environment / "bin" / "registry-proxy")
    where = run(str(python), "-I", "-c", "import registry_proxy; print(registry_proxy.__file__)")
    assert where.startswith(str(environment))
    assert run(command, "--version") == f"registry-proxy {version()}\n"
    assert run(command, "check-config", str(_ROOT / "config" / "example.yaml")) == "OK\n"
