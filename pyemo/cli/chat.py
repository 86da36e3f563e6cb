import click
@click.command()
def chat() -> None:
    """x"""
