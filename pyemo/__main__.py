"""``python -m pyemo``: the same as the command ``pyemo``."""

from pyemo.cli import main

if __name__ == "__main__":
    main(prog_name="pyemo")
