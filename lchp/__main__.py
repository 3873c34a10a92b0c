"""`python -m lchp`."""

from lchp.cli import program

if __name__ == "__main__":
    program()
