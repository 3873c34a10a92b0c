"""LCHP beside the methods it is compared with: Tables 1, 2 and 8, as `lchp sweep methods` runs it."""

from lchp.harness import exit_program, run_named

if __name__ == "__main__":
    exit_program(run_named("methods"))
