"""PKM Pipelines: a lakehouse for the notes of a person or a small team.

The package holds everything that can be tested without Dagster. The top-level packages
`assets`, `resources` and `schedules` declare to Dagster what is built here.
"""

__version__ = "0.1.0"
