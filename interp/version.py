"""The version of `interp`: of what writes files that name it. It imports nothing."""

__version__ = "0.1.0"
