"""Optuna's search over thresholds, rates and augmentation ranges, as `lchp sweep search` runs it."""

from lchp.harness import exit_program, run_named

if __name__ == "__main__":
    exit_program(run_named("search"))
