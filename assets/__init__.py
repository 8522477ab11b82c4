"""What exists: the tables of the lakehouse as Dagster assets, thin declarations over the library."""

import warnings

import dagster as dg

# Backfill policies and code references are called beta; the pinned minor range of Dagster keeps them as they are,
# and a page of warnings at each `pkm run` tells its reader nothing.
warnings.filterwarnings("ignore", category=dg.BetaWarning)
