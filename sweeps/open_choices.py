"""Each choice the paper leaves open: Table 7, as `lchp sweep open_choices` runs it."""

from lchp.harness import exit_program, run_named

if __name__ == "__main__":
    exit_program(run_named("open_choices"))
