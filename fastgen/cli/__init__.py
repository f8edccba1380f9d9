"""The command line: options, configuration files, help, error messages and exit codes.

Others may import :func:`main` (ends the process), :func:`run` (returns the exit code) and :func:`asked_of_generate`
(reads options and starts nothing).
"""

from fastgen.cli.app import asked_of_generate, main, run

__all__ = ["asked_of_generate", "main", "run"]
