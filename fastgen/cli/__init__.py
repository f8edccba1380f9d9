"""The command line: options, configuration files, help, error messages and exit codes.

Others may import :func:`main` (ends the process) and :func:`run` (returns the exit code).
"""

from fastgen.cli.app import main, run

__all__ = ["main", "run"]
