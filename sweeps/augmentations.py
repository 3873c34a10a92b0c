"""The subsets of {scale, translation, flip}: Table 6, as `lchp sweep augmentations` runs it."""

from lchp.harness import exit_program, run_named

if __name__ == "__main__":
    exit_program(run_named("augmentations"))
