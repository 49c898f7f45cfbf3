"""The `fairserve` command. Each command imports its room when it runs, so that none pays for another."""

from __future__ import annotations

import typer

app = typer.Typer(
    name="fairserve",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    help="Fair LLM serving: share one pool of vLLM engines between teams by weight.",
)


def main() -> None:
    """Entry point of the installed command."""
    app()


if __name__ == "__main__":
    main()
