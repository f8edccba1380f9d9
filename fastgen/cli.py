"""The command line: the only reader of argv and the environment, and the only place that ends the process.

Exit codes: 0 done; 2 bad input; 3 stopped but resumable; 130 interrupted. Every error is one line.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import cyclopts
from cyclopts import App, Parameter

from fastgen import __version__, option_sources
from fastgen.errors import FastgenError, InputError
from fastgen.options import JOB, Options, RefilterOptions, ServerOptions, SimilarityOptions

_HELP = """Self-Instruct at full speed: a language model writes new instructions from a few seed tasks, tells
classification tasks from others, writes instances, and everything low-quality or too similar is filtered out.

Start with: fastgen generate --num-instructions 30 --run-dir runs/demo
"""

app = App(
    name="fastgen",
    help=_HELP,
    version=__version__,
    version_flags=["--version"],
    help_format="markdown",
    default_parameter=Parameter(negative_iterable=()),
)
seeds_app = App(name="seeds", help="Look after seed tasks.")
embedded_app = App(name="embedded", help="The small CPU server that fastgen brings along: where it is, remove it.")
app.command(seeds_app)
app.command(embedded_app)

InJob = Parameter(group=JOB)


@app.command
def generate(
    *,
    run_dir: Annotated[Path, InJob],
    config: Annotated[Path | None, InJob] = None,  # noqa: ARG001 - read by _config_sources
    options: Options = Options(),  # noqa: B008 - frozen
) -> int:
    """Generate instructions with instances into a run folder; the same command goes on with a stopped run.

    Parameters
    ----------
    run_dir
        Folder of the run; made if it is not there. On resume it supplies every option that is not given.
    config
        TOML file with options of the same names as the flags (num_instructions = 1000, [instruction] temperature =
        0.9).
    """
    from fastgen import session
    from fastgen.pipeline import Place, require_target

    require_target(options)
    return session.run(Place(run_dir, _cache_dir(), _api_key(options.server)), options)


@app.command
def export(
    *,
    run_dir: Path,
    output: Annotated[Path, Parameter(allow_leading_hyphen=True)],
    format: Literal["raw", "instances", "rejected"] = "raw",  # noqa: A002 - the flag's name
    include_empty: bool = False,
) -> int:
    """Write a run's instructions as JSON lines; works while the run goes on, and what was exported once stays.

    Parameters
    ----------
    run_dir
        Folder of the run.
    output
        File to write; - is standard output.
    format
        raw: one instruction with its instances and provenance a line; instances: one flat instruction, input, output
        a line; rejected: what the filters rejected, with rule, neighbour and ROUGE-L.
    include_empty
        raw only: also instructions that were settled without any instance.
    """
    from fastgen.export import export as write

    count = write(run_dir, format, output, include_empty=include_empty)
    print(f"{count} rows written to {output}" + ("" if count else " (warning: the run has none yet)"), file=sys.stderr)
    return 0


@app.command
def status(*, run_dir: Path, json: bool = False) -> int:
    """Show a run's counts, yield and rejection ledger; works while the run goes on.

    Parameters
    ----------
    run_dir
        Folder of the run.
    json
        Print one JSON object instead.
    """
    import orjson

    from fastgen.status import render
    from fastgen.status import status as read

    figures = read(run_dir)
    print(orjson.dumps(figures, option=orjson.OPT_INDENT_2).decode() if json else render(figures))
    return 0


@app.command
def refilter(
    *,
    run_dir: Path,
    output: Path,
    options: RefilterOptions = RefilterOptions(),  # noqa: B008 - frozen
) -> int:
    """Rebuild a run under other rules from its kept completions, without any server, into a new run folder.

    Parameters
    ----------
    run_dir
        Folder of the run; it stays as it is.
    output
        New folder for the rebuilt run; 'fastgen generate --run-dir' on it goes on from there.
    """
    from fastgen.refilter import refilter as rebuild
    from fastgen.store import RunFolder

    before, after = RunFolder(run_dir).ledger(), rebuild(run_dir, output, options)
    print(
        f"{output}: kept {after.kept} instructions (before: {before.kept}), {after.complete} of them complete "
        f"(before: {before.complete})",
        file=sys.stderr,
    )
    return 0


@app.command
def audit(*, run_dir: Path, rate: float = 0.01, seed: int = 0) -> int:
    """Check a run's similarity decisions against the full scan: what its index missed, with a confidence bound.

    Parameters
    ----------
    run_dir
        Folder of the run.
    rate
        Share of the decisions to check (above 0, at most 1); each costs a scan of the pool as it was then.
    seed
        Draws the decisions.
    """
    from fastgen.audit import audit as check_decisions

    if not 0 < rate <= 1:
        raise InputError(f"--rate: {rate} is not above 0 and at most 1")
    print(check_decisions(run_dir, rate=rate, seed=seed))
    return 0


@app.command
def dedup(
    source: Path,
    /,
    *,
    output: Path,
    rejected: Path,
    field: str = "instruction",
    against: tuple[Path, ...] = (),
    overwrite: bool = False,
    quiet: bool = False,
    similarity: SimilarityOptions = SimilarityOptions(),  # noqa: B008 - frozen
) -> int:
    """Filter any JSON-lines or Parquet data set by ROUGE-L: whole rows, in order; goes on when it was killed.

    Parameters
    ----------
    source
        Data set to filter: JSON lines (also .gz, .zst) or Parquet.
    output
        File for the rows that are kept, just as they are.
    rejected
        File for the others, each with its neighbour and ROUGE-L.
    field
        Top-level key (column) whose text is compared.
    against
        Data sets that rows are compared with but that are not written; may be given several times.
    overwrite
        Replace outputs that are there.
    quiet
        Say nothing but errors and the last line.
    """
    from fastgen.dedup import dedup as run_dedup
    from fastgen.progress import choose_reporter

    reporter = choose_reporter(quiet=quiet, log_json=False)
    try:
        counts = run_dedup(
            source, output, rejected, similarity, reporter, field=field, against=against, overwrite=overwrite
        )
    finally:
        reporter.close()
    print(f"{counts.kept} of {counts.rows} rows kept in {output}, {counts.rejected} rejected", file=sys.stderr)
    return 0


@seeds_app.command
def check(file: Path, /) -> int:
    """Validate a seed file: schema with line and field, duplicates, near-duplicates, what the filters would reject.

    Parameters
    ----------
    file
        Seed tasks as JSON lines.
    """
    from fastgen.seeds import check_seed_tasks

    print(check_seed_tasks(file))
    return 0


@embedded_app.command(name="status")
def embedded_status() -> int:
    """Show whether the embedded server is set up, where, its versions and its size."""
    from fastgen.embedded import embedded_status as read

    found = read(_cache_dir())
    versions = ", ".join(f"{name} {version}" for name, version in found.versions.items())
    state = f"set up ({versions})" if found.ready else "not set up; 'fastgen generate' without --base-url does that"
    print(f"{found.path}: {state}, {found.size_bytes / 1e9:.2f} GB")
    return 0


@embedded_app.command(name="remove")
def embedded_remove() -> int:
    """Remove the embedded server's environment and model from the cache folder."""
    from fastgen.embedded import remove_embedded

    print(f"{remove_embedded(_cache_dir()) / 1e9:.2f} GB freed")
    return 0


def _cache_dir() -> Path:
    if given := os.environ.get("FASTGEN_CACHE_DIR"):
        return Path(given).expanduser()
    from platformdirs import user_cache_path

    return user_cache_path("fastgen")


def _api_key(server: ServerOptions) -> str | None:
    name, path = server.api_key_env, server.api_key_file
    if name is not None and path is not None:
        raise InputError("--api-key-file: --api-key-env names a key already; give one of the two")
    if name is not None:
        if not (key := os.environ.get(name)):
            raise InputError(f"--api-key-env {name}: that environment variable is not set or empty")
        return key
    if path is not None:
        return _read_key(path)
    return None


def _read_key(path: Path) -> str:
    try:
        key = path.read_text(encoding="ascii").partition("\n")[0].strip()
    except OSError as error:
        raise InputError(f"--api-key-file {path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise InputError(
            f"--api-key-file {path}: its first line is no key (only ASCII letters, digits and signs)"
        ) from None
    if not key:
        raise InputError(f"--api-key-file {path}: its first line is empty")
    return key


app.config = (option_sources.fill,)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and end the process with its exit code."""
    sys.exit(run(argv))


def run(argv: Sequence[str] | None = None) -> int:
    """The exit code of one command line."""
    try:
        result = app(argv, exit_on_error=False, print_error=False, result_action="return_value")
    except cyclopts.CycloptsError as error:
        return _fail(f"{' '.join(str(error).split())} ('fastgen --help' lists what there is)", InputError.exit_code)
    except FastgenError as error:
        return _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except BrokenPipeError:  # the reader of our output went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return result if isinstance(result, int) else 0


def _fail(message: str, exit_code: int) -> int:
    print(f"fastgen: {message}", file=sys.stderr)
    return exit_code
