"""`python -m registry_proxy`: the command line, or a worker when the supervisor calls."""

import sys


def main() -> None:
    """Run what the arguments say; the process ends with its exit status."""
    if sys.argv[1:2] == ["worker"]:  # the command line and its libraries stay out of the workers
        from registry_proxy import worker  # noqa: PLC0415 - only a worker needs it
        from registry_proxy.app import prepare, run_worker  # noqa: PLC0415 - and all that it serves

        sys.exit(worker.main(sys.argv[1:], run_worker, prepare))
    from registry_proxy.cli.main import app as command_line  # noqa: PLC0415 - a worker does without

    command_line()


if __name__ == "__main__":
    main()
