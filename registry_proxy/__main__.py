"""`python -m registry_proxy`: the command line, or what makes the workers when the supervisor calls."""

import sys


def main() -> None:
    """Run what the arguments say; the process ends with its exit status."""
    if sys.argv[1:2] == ["fork-server"]:  # the command line and its libraries stay out of it
        from registry_proxy.load import load_worker  # noqa: PLC0415
        from registry_proxy.node.fork_server import serve_forks  # noqa: PLC0415 - only this needs it

        _, descriptor, supervisor = sys.argv[1:]
        sys.exit(serve_forks(load_worker, int(descriptor), int(supervisor)))
    from registry_proxy.cli.main import app as command_line  # noqa: PLC0415

    command_line()


if __name__ == "__main__":
    main()
