#!/usr/bin/env python3
"""Every command of the project, also on a machine that has nothing but Python.

    python3 manage.py quickstart    set up, start and prove a gateway of your own
    python3 manage.py test [...]    run the tests; the rest goes to pytest
    python3 manage.py reset         delete the data of the quickstart

The first two build ``.venv`` where it is missing or out of date. These and all
other commands then run in it, and beside a running quickstart they use its
servers, unless ``DATABASE_URL`` names others.
"""

import contextlib
import os
import socket
import sys

# Before anything is imported that older versions cannot even read.
if sys.version_info < (3, 11):  # noqa: UP036
    sys.exit(f"Tollgate needs Python 3.11 or newer; {sys.executable} is {sys.version.split()[0]}.")
if sys.platform == "win32":
    sys.exit("Tollgate runs on Linux and macOS; on Windows run it in WSL.")

from config import bootstrap


def main() -> None:
    command = sys.argv[1] if len(sys.argv) > 1 else "help"
    if command in {"quickstart", "test"}:
        bootstrap.build_environment()
        bootstrap.keep_compiled()
    bootstrap.enter_environment()
    if command == "test":
        bootstrap.run_tests(sys.argv[2:])
    elif command == "quickstart":
        from config import quickstart

        sys.exit(quickstart.main(sys.argv[2:]))
    elif command == "reset":
        from config import reset

        sys.exit(reset.main(sys.argv[2:]))
    else:
        _run_with_settings(command)


def _run_with_settings(command: str) -> None:
    from django.core.exceptions import ImproperlyConfigured

    from config.data_directory import join_running_quickstart

    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
    join_running_quickstart(os.environ)
    try:
        if command == "serve":
            _serve()
        else:
            _run_in_django(command)
    except ImproperlyConfigured as exc:
        sys.exit(f"{exc}. No quickstart runs here either, whose settings could be used.")


def _serve() -> None:
    """Without the applications, which the worker processes load: their parent only looks after them."""
    from logging.config import dictConfig

    from django.conf import settings

    from config.management.commands.serve import Command

    # Not what Django adds of its own accord: who mails its faults has to know models and pages.
    dictConfig(settings.LOGGING)
    Command().run_from_argv(sys.argv)


def _run_in_django(command: str) -> None:
    import django
    from django.core.exceptions import ImproperlyConfigured
    from django.core.management import execute_from_command_line

    from audit.origins import origin
    from config.loading import loading

    origin.set(f"command {command} on {socket.gethostname()}")
    if command == "help":
        sys.stdout.write(f"{__doc__}\n")
    # Without settings there is nothing to load, and the next line says so.
    with contextlib.suppress(ImproperlyConfigured), loading():
        django.setup()
    execute_from_command_line(sys.argv)


if __name__ == "__main__":
    main()
