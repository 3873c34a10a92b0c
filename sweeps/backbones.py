"""Backbones of the localizer: Table 5, as `lchp sweep backbones` runs it."""

from lchp.harness import exit_program, run_named

if __name__ == "__main__":
    exit_program(run_named("backbones"))
