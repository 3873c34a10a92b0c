"""Exactly the cells of Tables 3-6, as `lchp sweep all_tables` runs it."""

from lchp.harness import exit_program, run_named

if __name__ == "__main__":
    exit_program(run_named("all_tables"))
