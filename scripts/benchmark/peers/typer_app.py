"""A command line that does nothing, with typer as it comes."""

import typer

app = typer.Typer()


@app.command()
def nothing(name: str = "bench") -> None:
    """Do nothing."""


if __name__ == "__main__":
    app()
