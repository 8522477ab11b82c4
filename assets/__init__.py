"""What exists: the tables of the lakehouse as Dagster assets, thin declarations over the library."""
