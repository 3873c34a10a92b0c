"""A fixture of the tests of steps, whose module imports torch: only those who run tests do (see ../conftest.py)."""

from fake_cuda import cuda  # noqa: F401
