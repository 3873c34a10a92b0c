"""The delta x tau grid: Tables 3 and 4, as `lchp sweep delta_tau` runs it."""

from lchp.harness import exit_program, run_named

if __name__ == "__main__":
    exit_program(run_named("delta_tau"))
