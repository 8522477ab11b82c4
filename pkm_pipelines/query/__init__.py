"""Questions: search, SQL, one note with its neighbours."""
